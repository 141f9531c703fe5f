"""What the scripts for Python SDKs have in common: what they send, and the sandbox that kills a token."""

import hashlib
import json
import sys

import requests
from requests.adapters import HTTPAdapter

APPID = "wx0123456789abcdef"
LITERAL = "https://api.weixin.qq.com"
USER = "o-sdk-user"
PICTURE = bytes(range(256)) * 512


class Sandbox:
    def __init__(self, url):
        self.url = url
        self.http = requests.Session()
        self.http.trust_env = False

    def revoke(self):
        self.http.post(f"{self.url}/sandbox/revoke", json={}, timeout=30).raise_for_status()


class ToProxy(HTTPAdapter):
    """Sends what is meant for WeChat's host to the proxy, as a changed base URL would."""

    def __init__(self, literal, proxy):
        super().__init__()
        self.literal = literal
        self.proxy = proxy
        self.attempts = []

    def send(self, request, **kwargs):
        request.url = request.url.replace(self.literal, self.proxy, 1)
        response = super().send(request, **kwargs)
        self.attempts.append(response.headers.get("x-wxgate-attempts"))
        return response


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def report(**seen):
    json.dump(seen, sys.stdout)
