"""Calls WeChat as a service that uses wechatpy does, through wxgate, while the token dies twice.

usage: wechatpy_calls.py BASE_URL SANDBOX_URL [KEY]

BASE_URL is where the service believes WeChat's API to be. KEY stands where the AppSecret would, and the SDK fetches a
token with it; without, it is handed one that means nothing. Prints one JSON object: what each call returned. Any error
that the SDK raises ends the script with a traceback. Nothing of the SDK is changed but where its requests go.
"""

import io
import sys

import takeover
from common import APPID, LITERAL, PICTURE, USER, Sandbox, ToProxy, report, sha256
from wechatpy import WeChatClient


def main(base, sandbox, key=None):
    takeover.install()
    sandbox = Sandbox(sandbox)
    client = WeChatClient(APPID, key or "no-secret-here", access_token=None if key else "anything", timeout=30)
    adapter = ToProxy(LITERAL, base)
    if base != LITERAL:
        client._http.trust_env = False
    client._http.mount(LITERAL, adapter)

    user = client.user.get(USER)
    sent = client.message.send_text(USER, "你好 from wechatpy")
    sandbox.revoke()
    uploaded = client.media.upload("image", ("picture.jpg", io.BytesIO(PICTURE), "image/jpeg"))
    downloaded = client.media.download(uploaded["media_id"])
    code = client.wxa.get_wxa_code_unlimited("scene=1")
    sandbox.revoke()
    menu = client.menu.get()
    again = client.message.send_text(USER, "again")
    followers = client.user.get_followers()
    # The SDK sends what it has for a secret, and a token that WeChat does not ask for here.
    session = client.wxa.code_to_session("code-1") if key else {}
    ticket = client.qrcode.create({"action_name": "QR_STR_SCENE", "action_info": {"scene": {"scene_str": "a"}}})

    report(
        token=client.access_token,
        user=user["openid"],
        sent=sent["errcode"],
        uploaded_sha256=sha256(PICTURE),
        downloaded_sha256=sha256(downloaded.content),
        code_type=code.headers["content-type"],
        code_is_jpeg=code.content[:2] == b"\xff\xd8" and code.content[-2:] == b"\xff\xd9",
        menu=menu,
        again=again["errcode"],
        followers=followers["total"],
        ticket=ticket["ticket"],
        session=session.get("openid"),
        attempts=adapter.attempts,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
