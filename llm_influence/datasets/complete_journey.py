"""Complete Journey: a year of a grocer's households with purchases, campaigns and coupons.

Three tables become one log; docs/tutorials/retail.md gives the choices and the reasons.

- `purchase`: one event for each product category of a visit (all that a household buys in one
  second). The item is the category, the value the dollars paid for it. The categories of a visit
  are sorted from the largest amount to the smallest. A log of visits keeps only the first, with
  the dollars of the whole visit.
- `contact`: a campaign sent to the household, at the midnight its coupons become valid. The item
  is the type of the campaign, so a new campaign is not a new item. The label is 1 if the household
  redeemed a coupon of the campaign within `WINDOW` days.
- `redeem`: a coupon, at the time of the visit in which it was redeemed.

Source: 84.51 degrees, "The Complete Journey"; CC0.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from llm_influence.data.catalogue import Catalogue
from llm_influence.data.log import BehaviorLog
from llm_influence.data.readers import read_table
from llm_influence.datasets.assets import asset_path

WINDOW = 14
"""Days from a contact within which a redemption counts."""

ZONE = "America/New_York"
"""Zone of the local dates; purchases are in UTC. With this zone, and with none of its neighbours,
every redemption falls on a day on which the household shopped."""

NAMED = 4
"""Largest number of product categories in the text of a coupon."""

FEATURES = ("age", "income", "home_ownership", "marital_status", "household_size", "kids_count")


def load_complete_journey(folder: Path | None = None, *, visits: bool = False) -> BehaviorLog:
    """Load the log of all households.

    Args:
        folder: Folder with the Parquet files of the set; default: they are fetched once.
        visits: Whether a visit is one purchase of its main category, not one for each category.

    Raises:
        AssetError: The files cannot be fetched.
        DataError: A file of ``folder`` is missing or cannot be read.
    """
    folder = folder or asset_path("complete_journey")
    people = _read(folder, "demographics", ("household_id", *FEATURES))
    return BehaviorLog.read(
        events(folder, visits=visits),
        items=Catalogue.from_table(items(folder)),
        users=people.rename_columns({"household_id": "user_id"}),
        timezone="UTC",
        duplicates="keep",  # two campaigns of a type may begin on one day
    )


def events(folder: Path, *, visits: bool = False) -> pa.Table:
    """All events: user_id, item_id, timestamp, behavior, value (dollars), label (1, 0 or null).

    Within one second, purchases come before redemptions.
    """
    bought = _purchases(folder)
    bought = _main_categories(bought) if visits else bought
    parts = (bought, _contacts(folder), _redemptions(folder))
    return pa.concat_tables(parts, promote_options="default")


def items(folder: Path) -> pa.Table:
    """Product categories, types of campaigns, and coupons: item_id, title, detail."""
    products = _products(folder)
    products_of_coupons = _coupon_products(folder, products)
    types = _read(folder, "campaign_descriptions", ("campaign_type",))["campaign_type"]
    types = pc.unique(types).sort()
    coupons = pc.unique(products_of_coupons["coupon_upc"]).sort()
    titles = pc.binary_join_element_wise("Campaign of ", pc.utf8_lower(types), "")
    campaigns = pa.table({"item_id": _campaign(types), "title": titles})
    names = _named(products_of_coupons, coupons)
    titles = pc.binary_join_element_wise("Coupon for ", names, "")
    offers = pa.table({"item_id": _coupon(coupons), "title": titles})
    return pa.concat_tables([_categories(products), campaigns, offers], promote_options="default")


def _purchases(folder: Path) -> pa.Table:
    """One row for each household, second and category, largest amounts first."""
    columns = ("household_id", "product_id", "sales_value", "transaction_timestamp")
    rows = _read(folder, "transactions", columns)
    products = _products(folder)
    place = pc.index_in(rows["product_id"], value_set=products["product_id"].combine_chunks())
    rows = rows.append_column("item_id", products["item_id"].combine_chunks().take(place))
    rows = rows.filter(pc.is_valid(rows["item_id"]))
    keys = ["household_id", "transaction_timestamp", "item_id"]
    bought = rows.group_by(keys).aggregate([("sales_value", "sum")])
    order = [(key, "ascending") for key in keys]
    bought = bought.sort_by([*order[:2], ("sales_value_sum", "descending"), order[2]])
    return _events(
        bought["household_id"],
        bought["item_id"],
        bought["transaction_timestamp"].cast(pa.timestamp("s"), safe=False),
        "purchase",
        value=bought["sales_value_sum"],
    )


def _main_categories(purchases: pa.Table) -> pa.Table:
    """The first purchase of every visit with the dollars of all of them."""
    visit = ["user_id", "timestamp"]
    numbered = purchases.append_column("row", pa.array(range(len(purchases))))
    visits = numbered.group_by(visit).aggregate([("value", "sum"), ("row", "min")])
    visits = visits.sort_by("row_min")
    first = purchases.take(visits["row_min"])
    return first.set_column(first.column_names.index("value"), "value", visits["value_sum"])


def _contacts(folder: Path) -> pa.Table:
    """One row for each household and campaign; the label is null if its window is not covered."""
    sent = _with_campaign(folder, _read(folder, "campaigns", ("household_id", "campaign_id")))
    sent = sent.sort_by([("household_id", "ascending"), ("campaign_id", "ascending")])
    redeemed = _with_campaign(folder, _read_redemptions(folder))
    until = _days_later(redeemed["start_date"], WINDOW)
    redeemed = redeemed.filter(pc.less_equal(redeemed["redemption_date"], until))
    hit = pc.is_in(_pair(sent), value_set=_pair(redeemed).combine_chunks())
    first, last = _covered_days(folder)
    until = _days_later(sent["start_date"], WINDOW)
    covered = pc.and_(pc.greater_equal(sent["start_date"], first), pc.less_equal(until, last))
    return _events(
        sent["household_id"],
        _campaign(sent["campaign_type"]),
        _midnight(sent["start_date"]),
        "contact",
        label=pc.if_else(covered, hit.cast(pa.float64()), None),
    )


def _redemptions(folder: Path) -> pa.Table:
    """One row for each household, coupon and day, at the day's last visit with a coupon discount.

    A few redemptions have no discount on any bill: these get the day's last visit.
    """
    redeemed = _read_redemptions(folder)
    days = ["household_id", "redemption_date"]
    redeemed = redeemed.group_by([*days, "coupon_upc"]).aggregate([])
    visits = _read(folder, "transactions", ("household_id", "transaction_timestamp", "coupon_disc"))
    visits = visits.append_column("redemption_date", _local_day(visits["transaction_timestamp"]))
    used = visits.filter(pc.greater(visits["coupon_disc"], 0))
    for name, table in (("used", used), ("any", visits)):
        latest = table.group_by(days).aggregate([("transaction_timestamp", "max")])
        latest = latest.rename_columns([*days, name])
        redeemed = redeemed.join(latest, days)
    redeemed = redeemed.append_column("moment", pc.coalesce(redeemed["used"], redeemed["any"]))
    order = ("household_id", "moment", "coupon_upc")
    redeemed = redeemed.sort_by([(name, "ascending") for name in order])
    return _events(
        redeemed["household_id"],
        _coupon(redeemed["coupon_upc"]),
        redeemed["moment"].cast(pa.timestamp("s"), safe=False),
        "redeem",
    )


def _events(
    households: pa.ChunkedArray,
    item_ids: pa.ChunkedArray,
    moments: pa.ChunkedArray,
    behavior: str,
    *,
    value: pa.ChunkedArray | None = None,
    label: pa.ChunkedArray | None = None,
) -> pa.Table:
    nothing = pa.nulls(len(households), pa.float64())
    columns = {
        "user_id": households,
        "item_id": item_ids,
        "timestamp": moments.cast(pa.int64()),
        "behavior": pa.array([behavior] * len(households), pa.string()),
        "value": nothing if value is None else value,
        "label": nothing if label is None else label,
    }
    return pa.table(columns)


def _products(folder: Path) -> pa.Table:
    """Products of a known category; `item_id` is the category."""
    products = _read(folder, "products", ("product_id", "product_category", "department"))
    products = products.rename_columns({"product_category": "item_id"})
    return products.filter(pc.is_valid(products["item_id"]))


def _categories(products: pa.Table) -> pa.Table:
    """The categories, each with the department of most of its products."""
    counts = products.group_by(["item_id", "department"]).aggregate([("product_id", "count")])
    most = ("product_id_count", "descending")
    counts = counts.sort_by([("item_id", "ascending"), most, ("department", "ascending")])
    first = counts.group_by("item_id", use_threads=False).aggregate([("department", "first")])
    title, detail = (pc.utf8_capitalize(first[name]) for name in ("item_id", "department_first"))
    return pa.table({"item_id": first["item_id"], "title": title, "detail": detail})


def _coupon_products(folder: Path, products: pa.Table) -> pa.Table:
    """Every product of every coupon, with its category."""
    coupons = _read(folder, "coupons", ("coupon_upc", "product_id"))
    place = pc.index_in(coupons["product_id"], value_set=products["product_id"].combine_chunks())
    categories = pc.utf8_lower(products["item_id"].combine_chunks().take(place))
    return coupons.append_column("category", pc.fill_null(categories, "other products"))


def _named(covered: pa.Table, coupons: pa.Array) -> pa.Array:
    """For each coupon, the `NAMED` categories with most of its products."""
    key = "coupon_upc"
    counts = covered.group_by([key, "category"]).aggregate([("product_id", "count_distinct")])
    most = ("product_id_count_distinct", "descending")
    counts = counts.sort_by([(key, "ascending"), most, ("category", "ascending")])
    names: dict[int, list[str]] = {}
    for row in counts.to_pylist():
        names.setdefault(row[key], []).append(row["category"])
    return pa.array([", ".join(names.get(number, [])[:NAMED]) for number in coupons.to_pylist()])


def _read_redemptions(folder: Path) -> pa.Table:
    columns = ("household_id", "coupon_upc", "campaign_id", "redemption_date")
    return _read(folder, "coupon_redemptions", columns)


def _with_campaign(folder: Path, table: pa.Table) -> pa.Table:
    """The table with each campaign's first day and type."""
    facts = ("start_date", "campaign_type")
    campaigns = _read(folder, "campaign_descriptions", ("campaign_id", *facts))
    place = pc.index_in(table["campaign_id"], value_set=campaigns["campaign_id"].combine_chunks())
    for fact in facts:
        table = table.append_column(fact, campaigns[fact].combine_chunks().take(place))
    return table


def _covered_days(folder: Path) -> tuple[pa.Scalar, pa.Scalar]:
    """First and last day with purchases."""
    moments = _read(folder, "transactions", ("transaction_timestamp",))["transaction_timestamp"]
    ends = pc.min_max(_local_day(moments))
    return ends["min"], ends["max"]


def _local_day(moments: pa.ChunkedArray) -> pa.ChunkedArray:
    """The local days of times in UTC, each as its midnight without a zone."""
    local = pc.local_timestamp(pc.assume_timezone(moments, "UTC").cast(pa.timestamp("ns", ZONE)))
    return pc.floor_temporal(local, unit="day")


def _midnight(days: pa.ChunkedArray) -> pa.ChunkedArray:
    """The times in UTC at which local days begin."""
    return pc.assume_timezone(days, ZONE).cast(pa.timestamp("s", "UTC"), safe=False)


def _days_later(days: pa.ChunkedArray, count: int) -> pa.ChunkedArray:
    return pc.add(days, pa.scalar(count * 86_400 * 10**9, pa.duration("ns")))


def _pair(table: pa.Table) -> pa.ChunkedArray:
    """Household and campaign as one key."""
    texts = [table[name].cast(pa.string()) for name in ("household_id", "campaign_id")]
    return pc.binary_join_element_wise(*texts, " ")


def _campaign(types: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.binary_join_element_wise("campaign", pc.utf8_lower(types), " ")


def _coupon(numbers: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.binary_join_element_wise("coupon", numbers.cast(pa.string()), " ")


def _read(folder: Path, name: str, columns: Sequence[str]) -> pa.Table:
    return read_table(folder / f"{name}.parquet", text=(), select=lambda _: columns)
