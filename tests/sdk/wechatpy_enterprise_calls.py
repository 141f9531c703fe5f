"""Calls WeCom as a service that uses wechatpy.enterprise does, through wxgate, while the token dies twice.

usage: wechatpy_enterprise_calls.py BASE_URL SANDBOX_URL CORPID KEY

KEY stands where the agent's secret would. Prints one JSON object: what each call returned. Any error that the SDK
raises ends the script with a traceback. Nothing of the SDK is changed but where its requests go.
"""

import io
import sys

from common import PICTURE, Sandbox, ToProxy, report
from wechatpy.enterprise import WeChatClient

LITERAL = "https://qyapi.weixin.qq.com"


def main(base, sandbox, corpid, key):
    sandbox = Sandbox(sandbox)
    client = WeChatClient(corpid, key, timeout=30)
    adapter = ToProxy(LITERAL, base)
    client._http.trust_env = False
    client._http.mount(LITERAL, adapter)

    sent = client.message.send_text(1000002, "zhangsan", "你好 from wechatpy.enterprise")
    user = client.user.get("zhangsan")
    sandbox.revoke()
    uploaded = client.media.upload("image", ("picture.jpg", io.BytesIO(PICTURE), "image/jpeg"))
    departments = client.get("department/list")
    sandbox.revoke()
    menu = client.menu.get(1000002)
    ticket = client.jsapi.get_ticket()
    again = client.message.send_text(1000002, "zhangsan", "again")

    report(
        token=client.access_token,
        codes=[answer["errcode"] for answer in (sent, user, departments, menu, ticket, again)],
        uploaded=uploaded["media_id"],
        ticket=ticket["ticket"],
        attempts=adapter.attempts,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
