"""What the edge makes of the policy and the price book."""

from datetime import date

from services.common.policy import Policy
from services.common.prices import PriceBook
from services.edge.app import rules_of
from services.edge.domain.budgets import Budget, Mode, Period

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


def test_the_policys_budgets_are_the_walks():
    rates = [{"valid_from": "2024-01-01", "input": 1, "output": 4}]
    cheap = [{"valid_from": "2024-01-01", "input": 0.1, "output": 0.4}]
    prices = PriceBook.model_validate({"models": {"big": {"prices": rates}, "tiny": {"prices": cheap}}})
    policy = Policy.model_validate(
        {
            "baseline": "big",
            "tiers": {"medium": {"candidates": ["big", "tiny"]}, "low": {"candidates": ["tiny"]}},
            "budgets": [
                {"name": "a", "period": "day", "usd": 0.1, "user": "*"},
                {"name": "b", "period": "month", "usd": 1234.56, "tenant": "acme", "mode": "soft"},
                {"name": "c", "period": "day", "usd": 3, "mode": "soft", "degrade_to": "medium"},
            ],
        }
    )
    assert rules_of(policy, prices).budgets.budgets == (
        Budget("a", 100_000_000, Period.DAY, Mode.HARD, user="*", degrade_to="low"),
        Budget("b", 1_234_560_000_000, Period.MONTH, Mode.SOFT, "acme", degrade_to="low"),
        Budget("c", 3_000_000_000, Period.DAY, Mode.SOFT, degrade_to="medium"),
    )
