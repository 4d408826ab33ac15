"""Complete Journey: three tables become one log, and no label comes from what was not watched."""

from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from llm_influence.config.data import DataConfig
from llm_influence.datasets import complete_journey
from llm_influence.datasets.public import open_data


def moment(text):
    return datetime.fromisoformat(text)


def seconds(text):
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())


MOMENT = "transaction_timestamp"
PRODUCTS = [  # product, category, department
    (1, "BEEF", "MEAT"),
    (2, "BEEF", "MEAT"),
    (3, "BEEF", "GROCERY"),
    (4, "CHEESE", "GROCERY"),
    (5, "YOGURT", "DAIRY"),
    (6, None, "MISCELLANEOUS"),
]
BOUGHT = [  # household, basket, product, dollars, coupon discount, time in UTC
    (7, 70, 4, 2.0, 0.0, "2017-01-01 15:00:00"),
    (7, 71, 1, 3.0, 0.0, "2017-03-02 16:00:00"),
    (7, 71, 5, 4.0, 0.0, "2017-03-02 16:00:00"),
    (7, 71, 6, 50.0, 0.0, "2017-03-02 16:00:00"),
    (7, 71, 2, 3.0, 0.0, "2017-03-02 16:00:00"),
    (7, 72, 4, 2.0, 0.5, "2017-03-16 03:30:00"),  # the evening of the 15th in the shop's zone
    (7, 73, 4, 1.0, 0.0, "2017-03-16 03:40:00"),
    (8, 80, 5, 5.0, 0.0, "2017-03-16 17:00:00"),
    (9, 90, 5, 5.0, 0.0, "2017-06-30 17:00:00"),
]
CAMPAIGNS = [  # campaign, type, first day
    (1, "Type A", "2017-03-01"),
    (2, "Type B", "2016-12-31"),
    (3, "Type B", "2017-06-17"),
]
SENT = [(1, 7), (1, 8), (1, 9), (2, 7), (3, 7)]  # campaign, household
COUPONS = [(100, 1, 1), (100, 2, 1), (100, 4, 1), (101, 5, 1), (102, 4, 2), (102, 6, 2)]
REDEEMED = [  # household, coupon, campaign, day
    (7, 100, 1, "2017-03-15"),  # 14 days after the contact
    (8, 101, 1, "2017-03-16"),  # 15 days after it
]


@pytest.fixture
def folder(tmp_path):
    """The set's files with its own column names and types, made up."""

    def write(name, columns, rows):
        table = pa.table(dict(zip(columns, map(list, zip(*rows, strict=True)), strict=True)))
        for place, field in enumerate(table.schema):
            if pa.types.is_timestamp(field.type):
                times = table[field.name].cast(pa.timestamp("ns"))
                table = table.set_column(place, field.name, times)
        pq.write_table(table, tmp_path / f"{name}.parquet")

    write("products", ("product_id", "product_category", "department"), PRODUCTS)
    write(
        "transactions",
        ("household_id", "basket_id", "product_id", "sales_value", "coupon_disc", MOMENT),
        [(*row[:-1], moment(row[-1])) for row in BOUGHT],
    )
    write(
        "campaign_descriptions",
        ("campaign_id", "campaign_type", "start_date", "end_date"),
        [(*row[:2], moment(row[2]), moment(row[2]) + timedelta(30)) for row in CAMPAIGNS],
    )
    write("campaigns", ("campaign_id", "household_id"), SENT)
    write("coupons", ("coupon_upc", "product_id", "campaign_id"), COUPONS)
    write(
        "coupon_redemptions",
        ("household_id", "coupon_upc", "campaign_id", "redemption_date"),
        [(*row[:3], moment(row[3])) for row in REDEEMED],
    )
    write(
        "demographics",
        ("household_id", *complete_journey.FEATURES),
        [(7, "65+", "35-49K", "Homeowner", None, "2", "0")],
    )
    return tmp_path


def bought(folder, *, visits=False):
    log = complete_journey.load_complete_journey(folder, visits=visits)
    history = log["7"].events()
    return [(event.item, event.value) for event in history if event.behavior == "purchase"]


def test_a_visit_is_one_purchase_a_category_the_dearest_first(folder):
    visit = [("BEEF", 6.0), ("YOGURT", 4.0)]  # two products of beef; the nameless one is left out
    assert bought(folder) == [("CHEESE", 2.0), *visit, ("CHEESE", 2.0), ("CHEESE", 1.0)]


def test_a_log_of_visits_has_the_main_category_with_the_dollars_of_all(folder):
    visits = [("CHEESE", 2.0), ("BEEF", 10.0), ("CHEESE", 2.0), ("CHEESE", 1.0)]
    assert bought(folder, visits=True) == visits


def test_a_contact_is_labelled_by_what_its_whole_window_showed(folder):
    table = complete_journey.events(folder)
    contacts = table.filter(pc.equal(table["behavior"], "contact")).to_pylist()
    found = [(row["user_id"], row["item_id"], row["label"]) for row in contacts]
    assert found == [
        (7, "campaign type a", 1.0),
        (7, "campaign type b", None),  # began before the first purchase
        (7, "campaign type b", None),  # its window goes on after the last one
        (8, "campaign type a", 0.0),  # redeemed a day too late
        (9, "campaign type a", 0.0),
    ]
    others = table.filter(pc.not_equal(table["behavior"], "contact"))
    assert others["label"].null_count == len(others)


def test_a_redemption_follows_the_purchases_of_the_visit_that_used_a_coupon(folder):
    log = complete_journey.load_complete_journey(folder)
    events = [(e.behavior, e.item, e.timestamp) for e in log["7"].events()]
    moment = seconds("2017-03-16T03:30:00")
    assert events[-4:] == [
        ("purchase", "CHEESE", moment),
        ("redeem", "coupon 100", moment),
        ("purchase", "CHEESE", moment + 600),
        (
            "contact",
            "campaign type b",
            seconds("2017-06-17T04:00:00"),
        ),  # midnight in New York, in summer
    ]
    # No visit of household 8 used a coupon that day: the day's last visit stands for it.
    assert log["8"].events()[-1].timestamp == seconds("2017-03-16T17:00:00")


def test_items_have_words_and_people_their_features(folder):
    log = complete_journey.load_complete_journey(folder)
    texts = dict(zip(log.catalogue.ids.to_pylist(), log.catalogue.texts, strict=True))
    assert texts == {
        "BEEF": "Beef. Meat",  # most of its products are in that department
        "CHEESE": "Cheese. Grocery",
        "YOGURT": "Yogurt. Dairy",
        "campaign type a": "Campaign of type a",
        "campaign type b": "Campaign of type b",
        "coupon 100": "Coupon for beef, cheese",
        "coupon 101": "Coupon for yogurt",
        "coupon 102": "Coupon for cheese, other products",
    }
    assert log["7"].user["age"] == "65+"
    assert log["7"].user["marital_status"] == ""
    assert log["9"].user["age"] == ""


@pytest.mark.e2e
def test_the_real_set_is_what_the_docs_say():
    log = open_data(DataConfig(source="complete_journey_visits"))
    counts = pc.value_counts(log.to_table()["behavior"]).to_pylist()
    assert {row["values"]: row["counts"] for row in counts} == {
        "contact": 6589,
        "purchase": 155_575,
        "redeem": 2089,
    }
    assert (len(log), len(log.catalogue)) == (2469, 1287)
