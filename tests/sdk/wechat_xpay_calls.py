"""Asks for a user's virtual coins as a service that uses wechat-xpay does, through wxgate, while the token dies once.

usage: wechat_xpay_calls.py BASE_URL SANDBOX_URL

The SDK signs path and body of each call, and takes a token from its caller. Prints one JSON object: what the calls
returned, and, for each request that arrived, if its signature fits the body that came with it. Any error that the SDK
raises ends the script with a traceback. Nothing of the SDK is changed but its settings.
"""

import hmac
import sys
from urllib.parse import parse_qs

from common import APPID, USER, Sandbox, report
from wechat_xpay import XPayClient

APP_KEY = "app-key-of-the-tests"


def is_signed(request):
    message = f"{request['path']}&{request['body']}".encode()
    return parse_qs(request["query"])["pay_sig"] == [hmac.new(APP_KEY.encode(), message, "sha256").hexdigest()]


def main(base, sandbox):
    sandbox = Sandbox(sandbox)
    with XPayClient(APPID, APP_KEY, env=0, base_url=base) as client:
        balances = []
        for _ in range(2):
            balances.append(client.query_user_balance(USER, "ACCESS_TOKEN", "session-key").balance)
            sandbox.revoke()
    arrived = sandbox.http.get(f"{sandbox.url}/sandbox/requests?path=/xpay/**", timeout=30).json()["requests"]
    report(balances=balances, signed=[is_signed(request) for request in arrived])


if __name__ == "__main__":
    main(*sys.argv[1:])
