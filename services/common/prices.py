"""The price book: what each model costs, from which day on. Nothing about prices is hard-coded elsewhere."""

from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

from services.common.money import NANO, Rates, Tariff, Usage, batch_rates, price
from services.common.yaml_file import load_yaml_model

Dollars = Annotated[Decimal, Field(ge=0, le=100_000)]

SHIPPED = Path(__file__).parent / "data" / "prices.yaml"


class _Prices(BaseModel):
    """Dollars per million tokens. Unset prices of cached input mean that it costs what any input costs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    input: Dollars = Field(description="Uncached input.")
    output: Dollars = Field(description="Output, reasoning included.")
    cache_read: Dollars | None = Field(None, description="Input read from the prompt cache.")
    cache_write: Dollars | None = Field(None, description="Input written to it at the default lifetime.")
    cache_write_long: Dollars | None = Field(None, description="Input written with a lifetime of an hour or more.")
    batch_cache_read: Dollars | None = Field(
        None, description="Input read from the prompt cache by a batch, where that is not batch_factor of cache_read."
    )

    def tariff_at(self, batch_factor: Decimal) -> Tariff:
        """The same in nano-USD per million tokens, at once and in a batch."""

        def nano(dollars: Decimal | None, otherwise: Decimal) -> int:
            return int((otherwise if dollars is None else dollars) * NANO)

        write = self.input if self.cache_write is None else self.cache_write
        rates = Rates(
            input=nano(self.input, self.input),
            output=nano(self.output, self.output),
            cache_read=nano(self.cache_read, self.input),
            cache_write=nano(self.cache_write, self.input),
            cache_write_long=nano(self.cache_write_long, write),
        )
        batch = batch_rates(rates, batch_factor)
        if self.batch_cache_read is not None:
            batch = replace(batch, cache_read=nano(self.batch_cache_read, self.input))
        return Tariff(rates, batch)


class LongContext(_Prices):
    """What the whole of a long request costs."""

    from_tokens: int = Field(ge=1, description="Requests of more input tokens than this are long.")


class Price(_Prices):
    """What a model costs from a day on until the next entry."""

    valid_from: date = Field(description="First day (UTC) of this price.")
    batch_factor: Decimal = Field(Decimal(1), gt=0, le=1, description="Share of every price that a batch pays.")
    long_context: LongContext | None = Field(None, description="Prices of long requests, where they differ.")

    def tariff(self) -> Tariff:
        """The same in nano-USD per million tokens."""
        tariff, long = self.tariff_at(self.batch_factor), self.long_context
        if long is None:
            return tariff
        return replace(tariff, long=long.tariff_at(self.batch_factor), long_from=long.from_tokens)


class Speed(BaseModel):
    """How fast a model is expected to answer. It orders models; nothing is billed by it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    first_token_s: float = Field(ge=0, le=3600, description="Seconds until the answer begins, after any reasoning.")
    tokens_per_s: float = Field(gt=0, le=100_000, description="Tokens a second from then on.")


class ModelPrices(BaseModel):
    """All prices of one model, oldest first."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str = Field("", description="Whose prices they are, and of when.")
    speed: Speed | None = Field(None, description="Expected speed, where one is known.")
    prices: tuple[Price, ...] = Field(min_length=1)

    def on(self, day: date) -> Price | None:
        """The newest price that is valid on a day."""
        valid = (price for price in self.prices if price.valid_from <= day)
        return max(valid, key=lambda price: price.valid_from, default=None)


class PriceBook(BaseModel):
    """Prices by model name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    models: dict[str, ModelPrices]

    # Tariffs by model and day: asked for on every request, computed once a day.
    _known: dict[tuple[str, date], Tariff | None] = PrivateAttr(default_factory=dict)

    @classmethod
    def load(cls, path: Path = SHIPPED) -> "PriceBook":
        """Reads a price file. Raises ConfigError naming file and line."""
        return load_yaml_model(path, cls)

    def tariff(self, model: str, on: date | None = None) -> Tariff | None:
        """All that a model costs on a day (today, UTC); None where no price is known, which is never the same as free."""
        entry = self.models.get(model)
        if entry is None:
            return None
        day = on or datetime.now(UTC).date()
        if (model, day) not in self._known:
            price = entry.on(day)
            self._known[model, day] = None if price is None else price.tariff()
        return self._known[model, day]

    def rates(self, model: str, on: date | None = None, input_tokens: int = 0) -> Rates | None:
        """Rates of a model on a day (today, UTC) for a request of this size; None where no price is known."""
        tariff = self.tariff(model, on)
        return None if tariff is None else tariff.at(input_tokens).rates

    def batch_rates(self, model: str, on: date | None = None, input_tokens: int = 0) -> Rates | None:
        """What an item of a batch pays on a day (today, UTC) for a request of this size; None where no price is known."""
        tariff = self.tariff(model, on)
        return None if tariff is None else tariff.at(input_tokens).batch

    def price(self, model: str, usage: Usage) -> int | None:
        """What a call costs today, in nano-USD; None where no price is known."""
        rates = self.rates(model, input_tokens=usage.input_tokens)
        return None if rates is None else price(rates, usage)
