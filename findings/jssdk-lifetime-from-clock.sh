#!/usr/bin/env bash
#
# wechat-jssdk 5.1.0 (npm): how long does it keep a token and a ticket?
#
# Guess: as long as WeChat's `expires_in` says, less a margin.
# Seen:  119 minutes from the moment they were stored; `expires_in` of both answers is not read. A
#        control server that rightly answers with what is left of a shared ticket (here 300 s) is
#        not asked again, and pages are signed with a dead ticket for up to 114 minutes.
# Seen too: `apiUrl`, the base URL of the configuration, moves calls of users (`/sns/…`) but neither
#        the token nor the ticket call: those follow `accessTokenUrl` and `ticketUrl` alone.

set -euo pipefail
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder"
npm init -y >/dev/null && npm install --silent --ignore-scripts --no-audit --no-fund wechat-jssdk@5.1.0

cat >run.js <<'JS'
const http = require('http');
const { Wechat, Store } = require('wechat-jssdk');

const asked = [];
const server = http.createServer((request, response) => {
  asked.push(request.url.split('?')[0]);
  const answer = request.url.includes('getticket')
    ? { errcode: 0, errmsg: 'ok', ticket: `ticket-${asked.length}`, expires_in: 300 }
    : { access_token: `token-${asked.length}`, expires_in: 300 };
  response.setHeader('Content-Type', 'application/json');
  response.end(JSON.stringify(answer));
});
server.listen(0, '127.0.0.1', async () => {
  const base = `http://127.0.0.1:${server.address().port}`;
  const options = {
    wechatToken: 't', appId: 'wx0123456789abcdef', appSecret: 's', wechatRedirectUrl: base,
    apiUrl: base, accessTokenUrl: `${base}/cgi-bin/token`, ticketUrl: `${base}/cgi-bin/ticket/getticket`,
    store: new Store(), 
  };
  const { jssdk } = new Wechat(options);
  await jssdk.getSignature('https://a.example/1');
  const real = Date.now;
  const later = minutes => { const past = real() + minutes * 60000; Date.now = () => past;
    const Real = Date; global.Date = class extends Real {
      constructor(...args) { args.length ? super(...args) : super(past); } static now() { return past; } }; return Real; };
  const counts = [asked.length];
  for (const minutes of [6, 118, 120]) {
    const before = later(minutes);
    await jssdk.getSignature(`https://a.example/${minutes}`);
    global.Date = before; Date.now = real;
    counts.push(asked.length);
  }
  console.log(`calls after 0, 6, 118, 120 minutes: ${counts.join(' ')}`);
  const defaults = new Wechat({ wechatToken: 't', appId: 'wx0123456789abcdef', appSecret: 's',
    wechatRedirectUrl: base, apiUrl: base, store: new Store() }).jssdk.wechatConfig;
  console.log(`token call with apiUrl alone: ${new URL(defaults.accessTokenUrl).host}`);
  process.exit(0);
});
JS
said=$(node run.js)
printf '%s\n' "$said"
[[ $said == 'calls after 0, 6, 118, 120 minutes: 2 2 2 4
token call with apiUrl alone: api.weixin.qq.com' ]]
