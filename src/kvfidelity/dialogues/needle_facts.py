"""Small facts that a user may mention in passing, written for this project.

Each kind has several wordings of the fact and of the question, so that neither position nor
wording gives an answer away; `{}` stands for the value. A question comes with the words that begin
its answer: put before the reply, they make every candidate answer equally natural. No value occurs
in the sentences or values of another kind.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FactKind:
    """One kind of fact. questions: pairs of a question and the beginning of its answer."""

    name: str
    statements: tuple[str, ...]
    questions: tuple[tuple[str, str], ...]
    values: tuple[str, ...]


#: What may stand before a fact.
FACT_OPENINGS = (
    "",
    "By the way, ",
    "Before I forget: ",
    "One thing about me, since it may matter later: ",
    "Something else, unrelated: ",
    "Just so you know, ",
    "Please keep in mind: ",
)
#: What may stand before a question.
QUESTION_OPENINGS = (
    "",
    "One more thing. ",
    "Quick check: ",
    "I forgot something I told you. ",
    "Going back to what I mentioned: ",
)

FACT_KINDS = (
    FactKind(
        "pet",
        (
            "my dog is called {}.",
            "we have had a dog since March, and the children named him {}.",
            "if I vanish for a minute, it is because {}, my dog, wants to go out.",
            "I share the flat with an old dog who answers to {}.",
        ),
        (
            ("What is my dog's name?", "Your dog's name is"),
            ("What did I say my dog is called?", "Your dog is called"),
            ("Which name does my dog answer to?", "Your dog answers to"),
        ),
        ("Biscuit", "Otto", "Pepper", "Juniper", "Waffle", "Bruno", "Mango", "Ziggy", "Clover"),
    ),
    FactKind(
        "sister_city",
        (
            "my sister moved to {} last autumn.",
            "I am visiting my sister in {} next month.",
            "I have family abroad: my sister lives in {}.",
            "half of my post goes to {}, where my sister lives.",
        ),
        (
            ("In which city does my sister live?", "Your sister lives in"),
            ("Where did I say my sister lives?", "Your sister lives in"),
            ("To which city would I travel to see my sister?", "You would travel to"),
        ),
        ("Lisbon", "Oslo", "Nairobi", "Toronto", "Kyoto", "Prague", "Lima", "Dublin", "Hanoi"),
    ),
    FactKind(
        "allergy",
        (
            "I am allergic to {}.",
            "my doctor told me to stay away from {} because of an allergy.",
            "I cannot eat {}; I get a rash from it at once.",
            "please never suggest recipes with {}, I am allergic.",
        ),
        (
            ("What am I allergic to?", "You are allergic to"),
            ("Which food can I not eat?", "You cannot eat"),
            ("What should a recipe for me leave out?", "A recipe for you should leave out"),
        ),
        (
            "walnuts",
            "celery",
            "shellfish",
            "sesame",
            "mustard",
            "soy",
            "lentils",
            "peanuts",
            "kiwi",
        ),
    ),
    FactKind(
        "colour",
        (
            "I have painted my front door {}.",
            "you would know our house by its {} front door.",
            "the front door is {} now, and the neighbours talk of nothing else.",
            "our landlord finally agreed that the front door may be {}.",
        ),
        (
            ("What colour is my front door?", "Your front door is"),
            ("Which colour did I say our front door has?", "Your front door is"),
            ("How would somebody recognise our front door?", "By its colour, which is"),
        ),
        ("yellow", "turquoise", "purple", "orange", "crimson", "white", "beige", "silver", "pink"),
    ),
    FactKind(
        "instrument",
        (
            "I have been learning the {} for two years.",
            "my evenings belong to the {} at the moment; I practise an hour a day.",
            "I play the {} in a small amateur group.",
            "for my birthday I got a second-hand {} and now I take lessons.",
        ),
        (
            ("Which instrument do I play?", "You play the"),
            ("What do I practise in the evening?", "You practise the"),
            ("Which instrument did I tell you about?", "You told me about the"),
        ),
        ("cello", "trumpet", "accordion", "harp", "flute", "banjo", "oboe", "violin", "clarinet"),
    ),
    FactKind(
        "weekday",
        (
            "I never work on a {}.",
            "my free day is {}.",
            "you will not hear from me on a {}, that is my day off.",
            "our office is shut every {}.",
        ),
        (
            ("On which weekday am I off?", "You are off on"),
            ("Which day of the week do I have free?", "Your free day is"),
            ("On which day do I not work?", "You do not work on"),
        ),
        ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    ),
    FactKind(
        "code",
        (
            "the code of my bicycle lock is {}.",
            "my bicycle lock opens with {}; remind me if I ask.",
            "I set the bicycle lock to {} this morning.",
            "I keep forgetting the number of my bicycle lock, it is {}.",
        ),
        (
            ("What is the code of my bicycle lock?", "The code of your bicycle lock is"),
            ("Which number opens my bicycle lock?", "Your bicycle lock opens with"),
            ("What did I set my bicycle lock to?", "You set your bicycle lock to"),
        ),
        ("4172", "9036", "2581", "7364", "1890", "6427", "3715", "8249", "5903"),
    ),
    FactKind(
        "drink",
        (
            "I drink nothing but {} in the morning.",
            "my day starts with a large {}.",
            "whatever the weather, I begin with a cup of {}.",
            "if you ever plan a breakfast for me, there has to be {}.",
        ),
        (
            ("What do I drink in the morning?", "In the morning you drink"),
            ("With which drink does my day start?", "Your day starts with"),
            ("What has to be there for my breakfast?", "There has to be"),
        ),
        ("cocoa", "black coffee", "green tea", "apple juice", "ginger tea", "milk", "espresso"),
    ),
    FactKind(
        "project",
        (
            "inside the team we call the project {}.",
            "the working title is {}, though nobody outside may know it.",
            "our code name for all this is {}.",
            "we named the project {} after a long evening.",
        ),
        (
            ("What is the code name of our project?", "The code name of your project is"),
            ("How do we call the project in the team?", "In the team you call the project"),
            ("Which working title did I mention?", "The working title is"),
        ),
        ("Lighthouse", "Marigold", "Granite", "Falcon", "Meridian", "Tundra", "Comet", "Saffron"),
    ),
    FactKind(
        "teacher",
        (
            "the best teacher I ever had was Mrs {}.",
            "I owe my love of reading to Mrs {}, who taught us at school.",
            "in my first school year we had a Mrs {}, whom I still write to.",
            "Mrs {} taught me everything about grammar.",
        ),
        (
            ("What was the name of the teacher I praised?", "The teacher was Mrs"),
            ("Which teacher did I tell you about?", "You told me about Mrs"),
            ("Who taught me at school?", "At school you were taught by Mrs"),
        ),
        ("Halloran", "Petrova", "Lindgren", "Okonkwo", "Duarte", "Fischer", "Novak", "Tanaka"),
    ),
    FactKind(
        "transport",
        (
            "I get to work by {}.",
            "every morning I take the {} to the office.",
            "my way to work is half an hour by {}.",
            "I sold the car, so now it is the {} to work every day.",
        ),
        (
            ("How do I get to work?", "You get to work by"),
            ("What do I take to the office?", "You take the"),
            ("Which means of transport did I mention?", "You mentioned the"),
        ),
        ("tram", "ferry", "bus", "scooter", "train", "moped", "metro"),
    ),
    FactKind(
        "hobby",
        (
            "at weekends I am usually busy with {}.",
            "my new hobby is {}, and it eats all my time.",
            "I signed up for a course in {}.",
            "nothing calms me like {}.",
        ),
        (
            ("What is my hobby?", "Your hobby is"),
            ("What did I sign up for or spend weekends on?", "You told me about"),
            ("Which pastime did I mention?", "You mentioned"),
        ),
        ("pottery", "archery", "beekeeping", "origami", "fencing", "woodcarving", "kayaking"),
    ),
)
