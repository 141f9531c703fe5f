"""Asks for a member of the corp as the client of wecom-crm-mcp does, through wxgate.

usage: wecom_crm_mcp_calls.py BASE_URL CORPID KEY FOLDER [OLD_TOKEN]

KEY stands where the agent's secret would. FOLDER has the token that an earlier run got; OLD_TOKEN is put there as one
from before wxgate. Prints one JSON object: what the call returned, and the token. Any error that the program raises
ends the script with a traceback. Nothing of it is changed but its settings.
"""

import asyncio
import sys
import time

from common import report
from wecom_crm_mcp import WecomClient, WecomConfig


async def main(base, corpid, key, folder, old=None):
    config = WecomConfig(corpid=corpid, corpsecret=key, base_url=base, cache_dir=folder)
    async with WecomClient(config) as client:
        if old:
            client._cache.set(client._token_cache_key, {"token": old, "expires_at": time.time() + 6900})
        member = await client.get("/cgi-bin/user/get", params={"userid": "zhangsan"})
        report(member=member["userid"], token=await client.get_access_token())


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
