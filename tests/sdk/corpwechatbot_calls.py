"""Sends a message as a service that uses corpwechatbot does; WeCom's host leads to wxgate.

usage: corpwechatbot_calls.py CORPID KEY FILE TEXT

KEY stands where the agent's secret would. FILE has the token that an earlier run got; the package's own place for it is
beside its code, where all users of an interpreter share it. Prints one JSON object: the answer, and the token. Nothing
else of the SDK is changed.
"""

import pathlib
import sys

import takeover
from common import report
from corpwechatbot import app


def main(corpid, key, file, text):
    takeover.install()
    app.TOKEN_PATH = pathlib.Path(file)
    bot = app.AppMsgSender(corpid=corpid, corpsecret=key, agentid="1000002", log_level=50)
    answer = bot.send_text(text, touser=["zhangsan"])
    report(code=answer["errcode"], token=bot.access_token)


if __name__ == "__main__":
    main(*sys.argv[1:])
