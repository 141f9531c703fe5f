'use strict';

// Stands for a DNS that sends WeChat's host to wxgate; loaded with --require.
//
// Only where the connection goes to changes: the caller goes on speaking TLS with api.weixin.qq.com, and checks the
// certificate for that name. WXGATE_TEST_TAKEOVER is the address in its place.

const net = require('net');

const HOST = 'api.weixin.qq.com';
const [address, port] = (process.env.WXGATE_TEST_TAKEOVER || '').split(':');
const connect = net.Socket.prototype.connect;

net.Socket.prototype.connect = function connectHere(...given) {
  // net.connect hands over its arguments in normal form, as a list that is one argument.
  const list = Array.isArray(given[0]) ? given[0] : given;
  if (address && list[0] && list[0].host === HOST) {
    list[0] = { ...list[0], host: address, port: Number(port) };
  }
  return connect.apply(this, given);
};
