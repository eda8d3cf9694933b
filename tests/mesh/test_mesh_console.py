"""The console of a running mesh, as a browser without scripts sees it."""

import re

import httpx2 as httpx
import pytest

from tests.mesh.conftest import ask

PAGES = ("", "/costs", "/cache", "/budgets", "/keys")


def csrf_in(page: str) -> str:
    found = re.search(r'name="csrf" value="([^"]+)"', page)
    assert found
    return found[1]


@pytest.fixture
async def visitor(mesh):
    async with httpx.AsyncClient(base_url=mesh.json["http"], timeout=20) as client:
        yield client


async def login(visitor, key: str, to: str = ""):
    csrf = csrf_in((await visitor.get("/console/login")).text)
    return await visitor.post("/console/login", data={"csrf": csrf, "key": key, "next": to})


async def test_nothing_is_shown_to_strangers(visitor):
    for page in PAGES:
        answer = await visitor.get(f"/console{page}")
        assert answer.status_code == 303
        assert answer.headers["location"].startswith("/console/login")


async def test_only_an_admin_key_opens_it(visitor, mesh):
    assert (await login(visitor, "lm-unknown")).status_code == 401
    assert (await login(visitor, mesh.json["keys"]["acme-shop"])).status_code == 403
    assert (await visitor.post("/console/login", data={"key": mesh.json["admin_key"]})).status_code == 403
    assert (await visitor.get("/console/costs")).status_code == 303


async def test_an_admin_sees_every_page_and_leads_nobody_elsewhere(visitor, mesh, acme):
    await ask(acme, "Which sizes does the green coat come in?")
    answer = await login(visitor, mesh.json["admin_key"], "https://evil.example/")
    assert (answer.status_code, answer.headers["location"]) == (303, "/console")
    for page in PAGES:
        answer = await visitor.get(f"/console{page}")
        assert answer.status_code == 200, page
        assert "<script" not in answer.text
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert mesh.json["admin_key"] not in answer.text
    assert "acme-shop" in (await visitor.get("/console/keys")).text
    assert (await visitor.get("/console/nothing-here")).status_code == 404


async def test_a_form_of_another_site_does_nothing(visitor, mesh):
    await login(visitor, mesh.json["admin_key"])
    made = {"tenant": "acme-shop", "name": "made-by-another-site"}
    assert (await visitor.post("/console/keys", data=made)).status_code == 403
    assert "made-by-another-site" not in (await visitor.get("/console/keys")).text


async def test_who_signed_out_is_a_stranger_again(visitor, mesh):
    await login(visitor, mesh.json["admin_key"])
    token = csrf_in((await visitor.get("/console")).text)
    assert (await visitor.post("/console/logout", data={"csrf": token})).status_code == 303
    assert (await visitor.get("/console")).status_code == 303
