"""Sends each request of a file with one library of Python and prints the status that it hears: early.py LIBRARY CASES.

A case is a line: name, method, url, file of the body, headers as JSON, separated by tabs.
"""

import asyncio
import http.client
import json
import os
import ssl
import sys
import urllib.parse


def standard(method, url, body, headers):
    u = urllib.parse.urlsplit(url)
    if u.scheme == "https":
        c = http.client.HTTPSConnection(u.hostname, u.port, timeout=60, context=ssl.create_default_context(cafile=os.environ["SSL_CERT_FILE"]))
    else:
        c = http.client.HTTPConnection(u.hostname, u.port, timeout=60)
    c.request(method, f"{u.path}?{u.query}", body=body, headers=headers)
    return c.getresponse().status


def with_requests(method, url, body, headers):
    import requests

    return requests.request(method, url, data=body, headers=headers, timeout=60, verify=os.environ["SSL_CERT_FILE"]).status_code


def with_httpx(method, url, body, headers):
    import httpx

    context = ssl.create_default_context(cafile=os.environ["SSL_CERT_FILE"])
    return httpx.request(method, url, content=body, headers=headers, timeout=60, verify=context).status_code


def with_aiohttp(method, url, body, headers):
    import aiohttp

    async def send():
        context = ssl.create_default_context(cafile=os.environ["SSL_CERT_FILE"])
        async with aiohttp.ClientSession() as session, session.request(method, url, data=body, headers=headers, ssl=context) as r:
            return r.status

    return asyncio.run(asyncio.wait_for(send(), 60))


send = {"http.client": standard, "requests": with_requests, "httpx": with_httpx, "aiohttp": with_aiohttp}[sys.argv[1]]
for line in open(sys.argv[2]):
    name, method, url, file, headers = line.rstrip("\n").split("\t")
    with open(file, "rb") as f:
        body = f.read()
    try:
        print(name, send(method, url, body, json.loads(headers)), sep="\t", flush=True)
    except Exception as e:  # noqa: BLE001
        print(name, f"{type(e).__name__}: {e}"[:200].replace("\n", " "), sep="\t", flush=True)
