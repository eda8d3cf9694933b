"""What must never share an answer, and what should."""

import pytest

from services.cache.domain import guards

VETOED = [
    ("How do I cancel my order?", "Can I cancel after 48 hours?", "numbers"),
    ("¿Cómo cancelo mi pedido?", "¿Puedo cancelar después de 48 horas?", "numbers"),
    ("Can I return it after 14 days?", "Can I return it after 30 days?", "numbers"),
    ("Where is order 48213?", "Where is order 48231?", "numbers"),
    ("Can I pay £20?", "Can I pay $20?", "numbers"),
    ("Is the shop open at 5pm?", "Is the shop open at 5am?", "numbers"),
    ("Can I use two coupons on one order?", "Can I use one coupon on two orders?", "numbers"),
    ("¿Puedo pagar en 3 cuotas?", "¿Puedo pagar en seis cuotas?", "numbers"),
    ("3 días laborables", "3 días", "numbers"),
    ("Why was my card charged?", "Why wasn't my card charged?", "negation"),
    ("¿Por qué me han cobrado?", "¿Por qué no me han cobrado?", "negation"),
    ("Can I fly with a passport?", "Can I fly without a passport?", "negation"),
    ("I paid with PayPal", "I paid with Visa", "entities"),
    ("How do I install it on an iPhone?", "How do I install it on an Android?", "entities"),
    ("¿Cuánto cuesta el envío a España?", "¿Cuánto cuesta el envío a México?", "entities"),
    ("What does error E42 mean?", "What does error E43 mean?", "entities"),
    ("Mail bob@example.com about it", "Mail ana@example.com about it", "entities"),
    ("Can I pay before the due date?", "Can I pay after the due date?", "antonyms"),
    ("Why is my bill higher than last month?", "Why is my bill lower than last month?", "antonyms"),
    ("¿Cómo enciendo el termostato?", "¿Cómo apago el termostato?", "antonyms"),
    ("¿Cómo doy de alta la luz?", "¿Cómo doy de baja la luz?", "antonyms"),
    ("How do I subscribe to the newsletter?", "How do I unsubscribe from the newsletter?", "antonyms"),
    ("How do I cancel my order?", "Can I cancel my order?", "question_type"),
    ("When do I pay?", "How much do I pay?", "question_type"),
    ("¿Cuándo llega mi pedido?", "¿Dónde está mi pedido?", "question_type"),
    ("¿Cómo pido el bono social?", "¿Puedo pedir el bono social?", "question_type"),
    ("When did my parcel leave?", "When will my parcel leave?", "tense"),
    ("How do I cancel my order?", "How do I cancel my subscription?", "substitution"),
    ("¿Cómo compro una tarjeta regalo?", "¿Cómo canjeo una tarjeta regalo?", "antonyms"),
    ("Where can I download my invoice?", "Where can I download my receipt?", "antonyms"),
    ("How do I return an item?", "How do I return a damaged item?", "addition"),
    ("¿Cómo pago la factura?", "¿Cómo pago la factura desde el extranjero?", "addition"),
    (
        "How do I switch from the fixed tariff to the variable one?",
        "How do I switch from the variable tariff to the fixed one?",
        "direction",
    ),
    (
        "¿Cómo cambio de la tarifa plana a la nocturna?",
        "¿Cómo cambio de la tarifa nocturna a la plana?",
        "direction",
    ),
    ("Does the bank charge the shop?", "Does the shop charge the bank?", "word_order"),
    ("How do I reset my password?", "¿Cómo cambio mi contraseña?", "language"),
    ("Why?", "What?", "question_type"),
    ("And you?", "And then?", "no_content"),
]

PASSED = [
    ("How do I reset my password?", "How can I reset my password?"),
    ("How do I reset my password?", "how do i reset my password please"),
    ("How do I reset my password?", "Hi, could you tell me how to reset my password?"),
    ("How do I reset my password?", "reset password"),
    ("How do I change my address?", "how do i change my adress"),
    ("Why wasn't my card charged?", "why hasn’t my card been charged"),
    ("Can I cancel within 24 hours?", "can I cancel within one day?"),
    ("Can I cancel within 24 hours?", "can I cancel within a day?"),
    ("Is it 1,300 dollars?", "is it $1300"),
    ("Is the shop open at 5pm?", "is the shop open at 17:00?"),
    ("I paid with PayPal", "i paid by paypal"),
    ("I've had no power for 24 hours, can I claim compensation?", "Without power for a day, can I claim compensation?"),
    ("How do I turn off the alarm?", "How do I turn the alarm off?"),
    ("How do I log in?", "how do i sign in"),
    ("¿Cómo cambio mi contraseña?", "como puedo cambiar mi contraseña"),
    ("¿Cómo cambio mi contraseña?", "Hola, ¿cómo cambio la contraseña, por favor?"),
    ("¿Puedo cancelar en 24 horas?", "puedo cancelar en un día"),
    ("¿Cómo envío la lectura del contador?", "¿Cómo mando la lectura del contador?"),
    ("¿Por qué mi factura es tan alta?", "¿Por qué es tan alta mi factura?"),
    ("¿Puedo devolverlo después de 30 días?", "¿Lo puedo devolver después de treinta días?"),
    ("¿Cómo pago con tarjeta de crédito?", "como puedo pagar con tarjeta de credito?"),
]


@pytest.mark.parametrize(("one", "other", "reason"), VETOED)
def test_look_alikes_are_vetoed_with_their_reason_both_ways_round(one, other, reason):
    there = guards.veto(guards.read(one), guards.read(other))
    back = guards.veto(guards.read(other), guards.read(one))
    assert there is not None
    assert back is not None
    assert (there.reason, back.reason) == (reason, reason)
    assert there.detail


@pytest.mark.parametrize(("one", "other"), PASSED)
def test_light_paraphrases_pass_both_ways_round(one, other):
    assert guards.veto(guards.read(one), guards.read(other)) is None
    assert guards.veto(guards.read(other), guards.read(one)) is None


@pytest.mark.parametrize("text", [text for pair in PASSED for text in pair])
def test_every_text_passes_against_itself(text):
    assert guards.veto(guards.read(text), guards.read(text)) is None


@pytest.mark.parametrize(
    "text", ["", " ", "\x00", "\ud800", "🙂" * 50, "?" * 1000, "1" * 400, "a" * 20_000, "½ ¼ ² ④ ٣"]
)
def test_odd_text_is_read_without_a_fault(text):
    assert guards.veto(guards.read(text), guards.read(text)) is None


def test_a_difference_far_into_a_long_text_is_seen():
    long = "the same words over and over " * 400
    veto = guards.veto(guards.read(long + "yellow"), guards.read(long + "purple"))
    assert veto is not None


def test_languages_may_be_crossed_where_the_policy_says_so():
    english, spanish = guards.read("How do I reset my password?"), guards.read("¿Cómo cambio mi contraseña?")
    assert guards.veto(english, spanish, cross_language=True) is None
    two = guards.read("Can I cancel after two days?")
    assert guards.veto(two, guards.read("¿Puedo cancelar después de 24 horas?"), cross_language=True) is not None


@pytest.mark.parametrize(
    ("text", "unit", "value"),
    [
        ("within 24 hours", "seconds", 86_400),
        ("en un día", "seconds", 86_400),
        ("half an hour", "seconds", 1_800),
        ("media hora", "seconds", 1_800),
        ("a couple of days", "seconds", 172_800),
        ("twenty four hours", "seconds", 86_400),
        ("two hundred euros", "eur", 200),
        ("€1.300", "eur", 1_300),
        ("1.234,56 €", "eur", 1_234.56),
        ("24.5%", "percent", 24.5),
        ("quince por ciento", "percent", 15),
        ("5 working days", "working days", 5),
        ("two years", "months", 24),
        ("at 5:30pm", "clock", 17.5 * 60),
        ("the 15th", "", 15),
    ],
)
def test_quantities_are_read_in_base_units(text, unit, value):
    assert guards.read(text).quantities == (guards.Quantity(unit, value),)
