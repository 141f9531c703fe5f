"""Logs a user of a web page in as a service that uses wechatpy's WeChatOAuth does, through wxgate.

usage: wechatpy_login.py BASE_URL APPID KEY CODE

KEY stands where the AppSecret would; CODE is what WeChat's page came back with. Prints one JSON object: what each call
returned. Any error that the SDK raises ends the script with a traceback. Nothing of the SDK is changed but where its
requests go.
"""

import sys

import takeover
from common import report
from wechatpy import WeChatOAuth


def main(base, appid, key, code):
    takeover.install()
    oauth = WeChatOAuth(appid, key, "https://shop.example/back", scope="snsapi_userinfo")
    oauth.API_BASE_URL = f"{base}/"

    login = oauth.fetch_access_token(code)
    user = oauth.get_user_info()
    checked = oauth.check_access_token()
    refreshed = oauth.refresh_access_token(login["refresh_token"])
    again = oauth.get_user_info()

    report(
        openids=[answer["openid"] for answer in (login, user, refreshed, again)],
        nickname=user["nickname"],
        checked=checked,
        tokens=[login["access_token"], refreshed["access_token"]],
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
