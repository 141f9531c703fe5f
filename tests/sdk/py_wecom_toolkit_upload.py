"""Uploads a picture as a service that uses py-wecom-toolkit does, through wxgate.

usage: py_wecom_toolkit_upload.py BASE_URL CORPID KEY FOLDER

KEY stands where the agent's secret would. FOLDER is for the token. Prints one JSON object: what the call returned. Any
error that the package raises, such as a field of another type than it wants, ends the script with a traceback. Nothing
of it is changed but its settings.
"""

import sys

from common import PICTURE, report, sha256
from py_wecom_toolkit.server.cache import AccessTokenDiskcacheCache
from py_wecom_toolkit.server.material.client import Client


def main(base, corpid, key, folder):
    with Client(corpid, key, base_url=base, cache=AccessTokenDiskcacheCache(folder)) as client:
        uploaded = client.upload("image", PICTURE, filename="图片.jpg")
        report(
            ok=uploaded.ok,
            media_id=uploaded.media_id,
            created_at=uploaded.created_at,
            sha256=sha256(PICTURE),
            token=client.get_access_token().access_token,
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
