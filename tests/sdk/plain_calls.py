"""Asks for a user with Python's own HTTP client.

usage: plain_calls.py OPENID
"""

import sys
import urllib.request

import takeover

takeover.install()
url = f"https://api.weixin.qq.com/cgi-bin/user/info?access_token=any&openid={sys.argv[1]}"
sys.stdout.buffer.write(urllib.request.urlopen(url, timeout=30).read())
