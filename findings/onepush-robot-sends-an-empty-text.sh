#!/usr/bin/env bash
#
# onepush 1.10.0 (PyPI): what does its group robot say?
#
# Guess: `notify(key=…, title=…, content=…)` sends title and content as a text message; with
#        `markdown=1` as markdown.
# Seen:  without `markdown` the content of the text is empty, whatever title and content say, and
#        the answer is looked at by nobody. `markdown=1` sends both.

set -euo pipefail
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check onepush==1.10.0

cat >run.py <<'PY'
import json
import requests
from onepush import get_notifier

class Answer:
    text, status_code = "", 200

def answer(self, method, url, **options):
    print(json.dumps(options["json"]))
    return Answer()

requests.Session.request = answer
robot = get_notifier("wechatworkbot")
robot.notify(key="k", title="alert", content="the disk is full")
robot.notify(key="k", title="alert", content="the disk is full", markdown=1)
PY
said=$(venv/bin/python run.py 2>/dev/null)
printf '%s\n' "$said"
[[ $said == '{"msgtype": "text", "text": {"content": ""}}
{"msgtype": "markdown", "markdown": {"content": "alert\n\nthe disk is full"}}' ]]
