"""Calls WeChat as a service that uses WeRoBot does, through wxgate, while the token dies twice.

usage: werobot_calls.py BASE_URL SANDBOX_URL KEY

WeRoBot has WeChat's host written in, so BASE_URL can only be that; the machine's DNS leads elsewhere (takeover.py). KEY
stands where the AppSecret would. Prints one JSON object: what each call returned. Any error that the SDK raises ends
the script with a traceback. Nothing of the SDK is changed.
"""

import io
import sys

import takeover
from common import APPID, LITERAL, PICTURE, USER, Sandbox, report, sha256
from werobot.client import Client


def main(base, sandbox, key):
    assert base == LITERAL, "WeRoBot cannot be told another host"
    takeover.install()
    sandbox = Sandbox(sandbox)
    client = Client({"APP_ID": APPID, "APP_SECRET": key})

    user = client.get_user_info(USER)
    sent = client.send_text_message(USER, "你好 from WeRoBot")
    sandbox.revoke()
    file = io.BytesIO(PICTURE)
    file.name = "图片.jpg"
    uploaded = client.upload_media("image", file)
    downloaded = client.download_media(uploaded["media_id"])
    menu = client.get_menu()
    sandbox.revoke()
    again = client.send_text_message(USER, "again")
    followers = client.get_followers()
    template = client.send_template_message(USER, "template-1", {"first": {"value": "hello"}})
    ticket = client.create_qrcode({"action_name": "QR_STR_SCENE", "action_info": {"scene": {"scene_str": "a"}}})

    report(
        token=client.token,
        user=user["openid"],
        sent=sent["errcode"],
        uploaded_sha256=sha256(PICTURE),
        downloaded_sha256=sha256(downloaded.content),
        menu=menu,
        again=again["errcode"],
        followers=followers["total"],
        template=template["errcode"],
        ticket=ticket["ticket"],
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
