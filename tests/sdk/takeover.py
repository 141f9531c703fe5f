"""Stands for a DNS that sends WeChat's host to wxgate.

Only the answer of the resolver changes: the caller goes on speaking TLS with api.weixin.qq.com, and checks the
certificate for that name. WXGATE_TEST_TAKEOVER is the address in its place; unset, nothing happens.
"""

import os
import socket

HOST = "api.weixin.qq.com"


def install():
    address, _, port = os.environ.get("WXGATE_TEST_TAKEOVER", "").rpartition(":")
    if not address:
        return
    resolve = socket.getaddrinfo

    def resolve_here(host, service, *rest, **named):
        if host in (HOST, HOST.encode()):
            return resolve(address, port, *rest, **named)
        return resolve(host, service, *rest, **named)

    socket.getaddrinfo = resolve_here
