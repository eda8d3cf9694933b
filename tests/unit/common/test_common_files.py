"""Policy and price book: every mistake is an error that names file and line."""

from datetime import date

import pytest

from services.common import policy as policy_module
from services.common import prices as prices_module
from services.common.policy import Policy, TtlClass
from services.common.prices import PriceBook
from services.common.yaml_file import ConfigError

PRICES = """models:
  big:
    prices:
      - {valid_from: 2024-01-01, input: 2.5, output: 10, cache_read: 1.25}
      - {valid_from: 2030-01-01, input: 1, output: 2, cache_write: 3, cache_write_long: 4}
  future:
    prices:
      - {valid_from: 2999-01-01, input: 1, output: 2}
"""

POLICY = """baseline: big
tiers:
  only:
    candidates:
      - big
ttl_classes:
  faq: 2h
namespaces:
  default:
    cache:
      floor: 0.4
    default_tier: only
"""


@pytest.fixture
def book(tmp_path):
    path = tmp_path / "prices.yaml"
    path.write_text(PRICES)
    return PriceBook.load(path)


def load(tmp_path, text: str | bytes, book) -> Policy:
    path = tmp_path / "policy.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return Policy.load(path, book)


def test_the_shipped_files_are_valid():
    policy = Policy.load(policy_module.SHIPPED, PriceBook.load(prices_module.SHIPPED))
    assert policy.namespace("") == policy.namespace("default")
    assert policy.namespace("nowhere") is None
    assert policy.ttl(TtlClass.ARCHIVE) == 14 * 86_400


def test_a_valid_policy(tmp_path, book):
    policy = load(tmp_path, POLICY, book)
    assert policy.ttl(TtlClass.FAQ) == 7200
    assert policy.ttl(TtlClass.REALTIME) == 45
    assert policy.namespaces["default"].cache.floor == 0.4


@pytest.mark.parametrize(
    ("old", "new", "line", "says"),
    [
        ("floor: 0.4", "flor: 0.4", 11, "Extra inputs are not permitted"),
        ("floor: 0.4", "floor: 1.4", 11, "less than or equal to 1"),
        ("floor: 0.4", "floor: .nan", 11, "less than or equal to 1"),
        ("floor: 0.4", "floor: 0.4\n      thresholds: {m: .nan}", 12, "less than or equal to 1"),
        ("floor: 0.4", "floor: high", 11, "valid number"),
        ("      - big", "      - bigg", 5, "no price is known for model 'bigg'"),
        ("      - big", "      - future", 5, "no price is known for model 'future'"),
        ("baseline: big", "baseline: huge", 1, "no price is known for model 'huge'"),
        ("baseline: big", "basline: big", 1, "Extra inputs are not permitted"),
        ("faq: 2h", "faq: 2 weeks", 7, "not a duration such as 45s"),
        ("faq: 2h", "faq: 0s", 7, "greater than 0"),
        ("faq: 2h", "faqs: 2h", 7, "realtime"),
        ("default_tier: only", "default_tier: other", 12, "no tier is named 'other'"),
        ("default_tier: only", "default_tier: [", 13, ""),
        ("floor: 0.4", "floor: 0.4\n      floor: 0.5", 12, "stands twice"),
        ("floor: 0.4", "floor: *anchor", 11, "alias"),
        ("floor: 0.4", "floor: !!python/object:os.system 1", 11, "constructor"),
        ("floor: 0.4", "floor: 2024-02-31", 11, "day is out of range"),
    ],
)
def test_a_mistake_names_file_and_line(tmp_path, book, old, new, line, says):
    assert old in POLICY
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, POLICY.replace(old, new, 1), book)
    assert any(f"policy.yaml:{line}:" in text and says in text for text in str(caught.value).splitlines()), caught.value


BUDGETS = """budgets:
  - {name: all, period: month, usd: 1000}
  - name: team
    tenant: acme
    endpoint: "*"
    namespace: default
    period: day
    usd: 0.5
    mode: soft
    degrade_to: only
"""


def test_valid_budgets(tmp_path, book):
    every, team = load(tmp_path, POLICY + BUDGETS, book).budgets
    assert (every.tenant, every.endpoint, every.mode, every.degrade_to) == ("*", None, "hard", None)
    assert (team.tenant, team.endpoint, team.user, team.period) == ("acme", "*", None, "day")


@pytest.mark.parametrize(
    ("old", "new", "line", "says"),
    [
        ("name: team", "name: all", 3, "another budget is named 'all'"),
        ("name: team", 'name: "a:b"', 3, "match pattern"),
        ("name: team", 'name: "team\\n"', 3, "match pattern"),
        ("namespace: default", "namespace: other", 6, "no namespace is named 'other'"),
        ("period: day", "period: week", 7, "'day' or 'month'"),
        ("usd: 0.5", "usd: 0", 8, "greater than or equal"),
        ("usd: 0.5", "usd: .inf", 8, "less than or equal"),
        ("usd: 0.5", "limit: 0.5", 8, "Extra inputs"),
        ("mode: soft", "mode: hard", 10, "only a soft one degrades"),
        ("degrade_to: only", "degrade_to: free", 10, "no tier is named 'free'"),
        ('endpoint: "*"', 'endpoint: ""', 5, "at least 1 character"),
    ],
)
def test_a_mistake_in_a_budget_names_file_and_line(tmp_path, book, old, new, line, says):
    assert old in BUDGETS
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, BUDGETS.replace(old, new, 1) + POLICY, book)
    assert any(f"policy.yaml:{line}:" in text and says in text for text in str(caught.value).splitlines()), caught.value


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", 1),
        (b"- a\n", 1),
        (b"just words", 1),
        (b"baseline: \xff\n", 1),
        (b"a: 1\nb: \x00\n", 2),
        (b"a: 1\n\tb: 2\n", 2),
    ],
)
def test_what_is_no_policy_at_all_is_such_an_error_too(tmp_path, book, content, line):
    with pytest.raises(ConfigError, match=rf"policy\.yaml:{line}: "):
        load(tmp_path, content, book)


def test_several_mistakes_are_told_at_once(tmp_path, book):
    text = POLICY.replace("      - big", "      - a\n      - b").replace("baseline: big", "baseline: c")
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text, book)
    assert len(str(caught.value).splitlines()) == 3


def test_a_missing_file_is_named(tmp_path, book):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: No such file"):
        Policy.load(tmp_path / "nowhere.yaml", book)
    with pytest.raises(ConfigError, match="Is a directory"):
        PriceBook.load(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("input: 2.5", "input: -1", 4),
        ("input: 2.5", "input: .nan", 4),
        ("input: 2.5", "input: .inf", 4),
        ("input: 2.5, ", "", 4),
        ("valid_from: 2024-01-01", "valid_from: 2024-13-01", 4),
        ("valid_from: 2024-01-01", "from: 2024-01-01", 4),
        ("cache_read: 1.25", "cached: 1.25", 4),
        ("  future:", "  big:", 6),
    ],
)
def test_a_mistake_in_the_price_book_names_file_and_line(tmp_path, old, new, line):
    path = tmp_path / "prices.yaml"
    path.write_text(PRICES.replace(old, new, 1))
    with pytest.raises(ConfigError, match=rf"prices\.yaml:{line}: "):
        PriceBook.load(path)


def test_the_newest_valid_price_counts(book):
    then, later = book.rates("big", date(2025, 1, 1)), book.rates("big", date(2031, 1, 1))
    assert (then.input, then.output, then.cache_read) == (2_500_000_000, 10_000_000_000, 1_250_000_000)
    assert (later.input, later.cache_read, later.cache_write_long) == (10**9, 10**9, 4 * 10**9)
    # Without a price of its own a cached token costs what any input token costs.
    assert then.cache_write == then.cache_write_long == then.input


def test_no_price_is_never_the_same_as_free(book):
    assert book.rates("nowhere") is None
    assert book.rates("future") is None
    assert book.rates("big", date(2023, 12, 31)) is None
