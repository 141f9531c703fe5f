#!/usr/bin/env bash
#
# corpwechatbot 0.6.4 (PyPI): when does it wait, and how long does it keep a token?
#
# Guess: twenty messages go out at once, the limit of a minute, and the 21st waits; a token is kept
#        for the seconds that gettoken's `expires_in` says.
# Seen:  the twentieth waits 60 s already, and each one after it, since a place of its queue is
#        taken before it is looked whether all are taken. A token is written down for 7200 s
#        whatever gettoken said: one that was good for another 300 s is used for 6900 s too long,
#        and after a change of the secret too (it is found by corpid and agentid). The file is
#        `token.json` in site-packages, beside the code, so it is one for all users of that Python.

set -euo pipefail
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check corpwechatbot==0.6.4

cat >run.py <<'PY'
import json, site, time
import requests

class Answer:
    status_code, text = 200, ""
    def __init__(self, value): self.value = value
    def json(self): return self.value

requests.get = lambda *a, **k: Answer(
    {"errcode": 0, "errmsg": "ok", "access_token": "token", "expires_in": 300})
requests.post = lambda *a, **k: Answer({"errcode": 0, "errmsg": "ok"})
from corpwechatbot.app import AppMsgSender, TOKEN_PATH

slept = []
time.sleep = slept.append
bot = AppMsgSender(corpid="ww0123456789abcdef", corpsecret="s", agentid="1000002", log_level=50)
for number in range(1, 22):
    before = len(slept)
    bot.send_text("hello", touser=["a"])
    if len(slept) > before:
        print(f"message {number} waited {slept[-1]} s")
[entry] = json.loads(TOKEN_PATH.read_text()).values()
print("lifetime", round((entry["expire_time"] - time.time()) / 100) * 100)
print("in site-packages", site.getsitepackages()[0] in str(TOKEN_PATH.resolve()))
PY
said=$(venv/bin/python run.py 2>/dev/null)
printf '%s\n' "$said"
[[ $said == 'message 20 waited 60 s
message 21 waited 60 s
lifetime 7200
in site-packages True' ]]
