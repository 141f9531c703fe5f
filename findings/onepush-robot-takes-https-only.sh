#!/usr/bin/env bash
#
# onepush 1.10.0 (PyPI): can its WeCom providers be pointed at a server in WeCom's place?
#
# Guess: `wechatworkbot` takes a whole URL instead of a key, http:// and https:// alike, since its
#        code looks for both; `wechatworkapp`, which has `custom_url`, sends nothing when gettoken
#        there is refused.
# Seen:  a URL with http:// is taken for a key: the call goes to qyapi.weixin.qq.com with the whole
#        URL, key included, as the value of `key`. Only https:// is understood. And after a refused
#        gettoken the message is sent all the same, with `access_token=None` in the query; the
#        answer to it is what the program hands back.

set -euo pipefail
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check onepush==1.10.0

cat >run.py <<'PY'
import requests
from onepush import get_notifier

class Answer:
    text, status_code = "", 200
    def __init__(self, value): self.value = value
    def json(self): return self.value

def answer(self, method, url, **options):
    print(method.upper(), url)
    if "gettoken" in url:
        return Answer({"errcode": 40001, "errmsg": "invalid credential"})
    return Answer({"errcode": 40014, "errmsg": "invalid access_token"})

requests.Session.request = answer
robot = get_notifier("wechatworkbot")
for scheme in ("http", "https"):
    robot.notify(key=f"{scheme}://gate.example/cgi-bin/webhook/send?key=k", content="hello")
app = get_notifier("wechatworkapp")
said = app.notify(corpid="ww0123456789abcdef", corpsecret="s", agentid="1000002",
                  content="hello", custom_url="http://gate.example")
print(said.json()["errcode"])
PY
said=$(venv/bin/python run.py 2>/dev/null)
printf '%s\n' "$said"
[[ $said == 'POST https://qyapi.weixin.qq.com/cgi-bin/webhook/send?key=http://gate.example/cgi-bin/webhook/send?key=k
POST https://gate.example/cgi-bin/webhook/send?key=k
GET http://gate.example/cgi-bin/gettoken
POST http://gate.example/cgi-bin/message/send?access_token=None
40014' ]]
