"""Asks for a user with wechatpy, whose storage still holds a token from before wxgate, and for a ticket.

usage: wechatpy_stored.py BASE_URL KEY [OLD_TOKEN]

KEY stands where the AppSecret would. Without OLD_TOKEN the storage is empty. Prints one JSON object: what each call
returned. Any error that the SDK raises ends the script with a traceback. Nothing of the SDK is changed but where its
requests go.
"""

import sys

from common import APPID, LITERAL, USER, ToProxy, report
from wechatpy import WeChatClient
from wechatpy.session.memorystorage import MemoryStorage


def main(base, key, old=None):
    storage = MemoryStorage()
    if old:
        storage.set(f"{APPID}_access_token", old)
    client = WeChatClient(APPID, key, session=storage, timeout=30)
    client._http.trust_env = False
    client._http.mount(LITERAL, ToProxy(LITERAL, base))

    user = client.user.get(USER)
    ticket = client.jsapi.get_jsapi_ticket()
    signature = client.jsapi.get_jsapi_signature("nonce", ticket, "1700000000", "https://shop.example/")

    report(user=user["openid"], ticket=ticket, signature=signature, token=client.access_token)


if __name__ == "__main__":
    main(*sys.argv[1:])
