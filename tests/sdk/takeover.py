"""Stands for a DNS that sends WeChat's hosts to wxgate.

Only the answer of the resolver changes: the caller goes on speaking TLS with api.weixin.qq.com or qyapi.weixin.qq.com,
and checks the certificate for that name. WXGATE_TEST_TAKEOVER is the address in its place; unset, nothing happens.
"""

import os
import socket

HOSTS = ("api.weixin.qq.com", "qyapi.weixin.qq.com")


def install():
    address, _, port = os.environ.get("WXGATE_TEST_TAKEOVER", "").rpartition(":")
    if not address:
        return
    resolve = socket.getaddrinfo

    def resolve_here(host, service, *rest, **named):
        if (host.decode() if isinstance(host, bytes) else host) in HOSTS:
            return resolve(address, port, *rest, **named)
        return resolve(host, service, *rest, **named)

    socket.getaddrinfo = resolve_here
