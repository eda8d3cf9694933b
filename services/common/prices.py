"""The price book: what each model costs, from which day on. Nothing about prices is hard-coded elsewhere."""

from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

from services.common.money import NANO, Rates
from services.common.yaml_file import load_yaml_model

Dollars = Annotated[Decimal, Field(ge=0, le=100_000)]

SHIPPED = Path(__file__).parent / "data" / "prices.yaml"


class Price(BaseModel):
    """Dollars per million tokens, valid from a day on until the next entry. Unset cached prices mean no discount."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    valid_from: date = Field(description="First day (UTC) of this price.")
    input: Dollars = Field(description="Uncached input.")
    output: Dollars = Field(description="Output.")
    cache_read: Dollars | None = Field(None, description="Input read from the prompt cache.")
    cache_write: Dollars | None = Field(None, description="Input written to it at the default lifetime.")
    cache_write_long: Dollars | None = Field(None, description="Input written with a lifetime of an hour or more.")
    batch_factor: Decimal = Field(Decimal(1), gt=0, le=1, description="Share of the price that a batch pays.")

    def rates(self) -> Rates:
        """The same in nano-USD per million tokens."""

        def nano(dollars: Decimal | None, otherwise: Decimal) -> int:
            return int((otherwise if dollars is None else dollars) * NANO)

        write = self.input if self.cache_write is None else self.cache_write
        return Rates(
            input=nano(self.input, self.input),
            output=nano(self.output, self.output),
            cache_read=nano(self.cache_read, self.input),
            cache_write=nano(self.cache_write, self.input),
            cache_write_long=nano(self.cache_write_long, write),
        )


class ModelPrices(BaseModel):
    """All prices of one model, oldest first."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str = Field("", description="Where the prices were read.")
    prices: tuple[Price, ...] = Field(min_length=1)


class PriceBook(BaseModel):
    """Prices by model name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    models: dict[str, ModelPrices]

    # Rates by model and day: asked for on every request, computed once a day.
    _known: dict[tuple[str, date], Rates | None] = PrivateAttr(default_factory=dict)

    @classmethod
    def load(cls, path: Path = SHIPPED) -> "PriceBook":
        """Reads a price file. Raises ConfigError naming file and line."""
        return load_yaml_model(path, cls)

    def rates(self, model: str, on: date | None = None) -> Rates | None:
        """Rates of a model on a day (today, UTC); None where no price is known, which is never the same as free."""
        entry = self.models.get(model)
        if entry is None:
            return None
        day = on or datetime.now(UTC).date()
        if (model, day) not in self._known:
            self._known[model, day] = self._rates(entry, day)
        return self._known[model, day]

    @staticmethod
    def _rates(entry: ModelPrices, day: date) -> Rates | None:
        valid = [p for p in entry.prices if p.valid_from <= day]
        return max(valid, key=lambda p: p.valid_from).rates() if valid else None
