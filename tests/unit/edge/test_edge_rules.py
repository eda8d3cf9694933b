"""The edge's prices depend on the size of the request."""

from datetime import date

from services.common.policy import Policy
from services.common.prices import PriceBook
from services.edge.app import rules_of

BOOK = PriceBook.model_validate(
    {
        "models": {
            "big": {
                "prices": [
                    {
                        "valid_from": date(2024, 1, 1),
                        "input": 1,
                        "output": 4,
                        "long_context": {"from_tokens": 1000, "input": 2, "output": 6},
                    }
                ]
            }
        }
    }
)


def test_a_long_request_would_have_cost_the_long_price_of_the_baseline():
    policy = Policy.model_validate({"baseline": "big", "tiers": {"medium": {"candidates": ["big"]}}})
    rules = rules_of(policy, BOOK)
    assert rules.baseline(1000).input == 1_000_000_000
    assert rules.baseline(1001).output == 6_000_000_000
    assert rules.rates("big", input_tokens=1001) == rules.baseline(1001)
    assert rules.rates("other") is None
