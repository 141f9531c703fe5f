"""Calls WeChat as a service that uses wechatpy does, through wxgate, while the token dies twice.

usage: wechatpy_calls.py PROXY_URL SANDBOX_URL

Prints one JSON object: what each call returned. Any error that the SDK raises ends the script with a traceback. Nothing
of the SDK is changed but where its requests go.
"""

import hashlib
import io
import json
import sys

import requests
from requests.adapters import HTTPAdapter
from wechatpy import WeChatClient


class ToProxy(HTTPAdapter):
    """Sends what is meant for https://api.weixin.qq.com to the proxy, as a changed base URL would."""

    def __init__(self, proxy):
        super().__init__()
        self.proxy = proxy
        self.attempts = []

    def send(self, request, **kwargs):
        request.url = request.url.replace("https://api.weixin.qq.com", self.proxy, 1)
        response = super().send(request, **kwargs)
        self.attempts.append(response.headers.get("x-wxgate-attempts"))
        return response


def main(proxy, sandbox):
    # The SDK wants a token to send along; a service behind wxgate has none.
    client = WeChatClient("wx0123456789abcdef", "no-secret-here", access_token="anything", timeout=30)
    adapter = ToProxy(proxy)
    client._http.mount("https://api.weixin.qq.com", adapter)
    client._http.trust_env = False
    control = requests.Session()
    control.trust_env = False

    def revoke():
        control.post(f"{sandbox}/sandbox/revoke", json={}, timeout=30).raise_for_status()

    picture = bytes(range(256)) * 512
    user = client.user.get("o-sdk-user")
    sent = client.message.send_text("o-sdk-user", "你好 from wechatpy")
    revoke()
    uploaded = client.media.upload("image", ("picture.jpg", io.BytesIO(picture), "image/jpeg"))
    downloaded = client.media.download(uploaded["media_id"])
    code = client.wxa.get_wxa_code_unlimited("scene=1")
    revoke()
    menu = client.menu.get()
    again = client.message.send_text("o-sdk-user", "again")
    followers = client.user.get_followers()

    json.dump(
        {
            "user": user["openid"],
            "sent": sent["errcode"],
            "uploaded_sha256": hashlib.sha256(picture).hexdigest(),
            "downloaded_sha256": hashlib.sha256(downloaded.content).hexdigest(),
            "code_type": code.headers["content-type"],
            "code_is_jpeg": code.content[:2] == b"\xff\xd8" and code.content[-2:] == b"\xff\xd9",
            "menu": menu,
            "again": again["errcode"],
            "followers": followers["total"],
            "attempts": adapter.attempts,
        },
        sys.stdout,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
