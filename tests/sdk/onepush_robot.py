"""Sends a message through a group robot as a service that uses onepush does; WeCom's host leads to wxgate.

usage: onepush_robot.py ROBOT_KEY TEXT

Prints one JSON object: the answer. Nothing of the package is changed. Without `markdown` it sends an empty text.
"""

import sys

import takeover
from common import report
from onepush import get_notifier


def main(key, text):
    takeover.install()
    answer = get_notifier("wechatworkbot").notify(key=key, content=text, markdown=1)
    report(status=answer.status_code, answer=answer.json())


if __name__ == "__main__":
    main(*sys.argv[1:])
