#!/usr/bin/env bash
#
# corpwechatbot 0.6.4 (PyPI): what does it do when WeCom says that its token is invalid?
#
# Guess: after 40014 or 42001 it asks gettoken for another token, sends the message again with that,
#        and goes on with it; its code says so ("refresh token").
# Seen:  it sends the message again, with the same token: what it calls to refresh reads the file
#        that it keeps the token in, where 7200 s are not over. gettoken is not asked, the second
#        40014 is handed back, and so it is for each message until the file is removed or two hours
#        have passed. What keeps it alive after a change of the agent's secret is a former token that
#        stays good for those two hours, and nothing else does.

set -euo pipefail
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check corpwechatbot==0.6.4

cat >run.py <<'PY'
import json
import requests

class Answer:
    status_code, text = 200, ""
    def __init__(self, value): self.value = value
    def json(self): return self.value

fetched = 0
def get(url, **options):
    global fetched
    fetched += 1
    print("gettoken", fetched)
    return Answer({"errcode": 0, "errmsg": "ok", "access_token": f"token-{fetched}", "expires_in": 7200})

revoked = set()
def post(url, **options):
    token = url.rpartition("=")[2]
    code = 40014 if token in revoked else 0
    print("send with", token, code)
    return Answer({"errcode": code, "errmsg": "ok" if code == 0 else "invalid access_token"})

requests.get, requests.post = get, post
from corpwechatbot.app import AppMsgSender, TOKEN_PATH

def send():
    bot = AppMsgSender(corpid="ww0123456789abcdef", corpsecret="s", agentid="1000002", log_level=50)
    print("says", bot.send_text("hello", touser=["a"])["errcode"])

send()
revoked.add("token-1")
send()
TOKEN_PATH.unlink()
send()
PY
said=$(venv/bin/python run.py 2>/dev/null)
printf '%s\n' "$said"
[[ $said == 'gettoken 1
send with token-1 0
says 0
send with token-1 40014
send with token-1 40014
says 40014
gettoken 2
send with token-2 0
says 0' ]]
