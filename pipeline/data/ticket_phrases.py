"""What generated tickets are made of. In each list the first clause is the plainest; later ones say it another way."""

from __future__ import annotations

INTENTS: dict[str, tuple[str, ...]] = {
    "leak": (
        "the {part} is leaking",
        "oil is dripping from the {part}",
        "there is a puddle below the {part} again",
        "the seal of the {part} does not hold any more",
        "the floor around the {part} is wet",
        "we have to top up the {part} every shift",
        "the {part} loses pressure over night",
        "fluid comes out of the {part} when the pressure rises",
    ),
    "noise": (
        "the {part} is making a loud noise",
        "the {part} rattles when it starts",
        "a grinding sound comes out of the {part} under load",
        "the {part} squeals after every stop",
        "you can hear the {part} from the other end of the floor",
        "something knocks inside the {part} when the pressure rises",
        "the {part} vibrates more than it did",
        "the {part} does not run as quietly any more",
    ),
    "overheating": (
        "the {part} is overheating",
        "the {part} is too hot to touch",
        "the temperature of the {part} rises under load",
        "the {part} smells burnt after every shift",
        "thermal protection stops the {part}",
        "the cooling of the {part} does not keep up any more",
        "the {part} stays warm over night",
        "the paint on the {part} turns brown",
    ),
    "electrical-fault": (
        "the {part} has an electrical fault",
        "the breaker of the {part} trips when it starts",
        "there is no supply at the {part}",
        "the {part} drops out under load without a message",
        "a wire at the {part} is loose",
        "the display of the {part} stays dark",
        "there are sparks at the terminals of the {part} again",
        "the {part} stops and starts by itself",
    ),
    "calibration": (
        "the {part} has to be calibrated",
        "the {part} shows too much",
        "what the {part} shows drifts over the shift",
        "the {part} and the reference do not agree any more",
        "the zero point of the {part} is off",
        "the certificate of the {part} runs out",
        "the {part} shows pressure when the line is empty",
        "two checks of the {part} gave different results",
    ),
    "spare-part": (
        "we need a spare {part}",
        "there has to be a new {part} in stock",
        "the last {part} on the shelf is gone",
        "we ask for a replacement for the {part}",
        "the delivery of the {part} takes too long",
        "a second {part} has to be kept for the line",
        "we want to change the {part} at the next stop and have none",
        "there is no {part} in stock any more",
    ),
}
"""Intent -> clauses."""

SEVERITIES: dict[str, tuple[str, ...]] = {
    "high": (
        "this is urgent , the line is down",
        "production has stopped",
        "somebody could get hurt",
        "it has to be done today",
        "nothing leaves the hall until it is done",
    ),
    "low": (
        "this is not urgent",
        "it can wait for the next planned stop",
        "production does not suffer",
        "there is no hurry , somebody could look at it some day",
        "it is for information only",
    ),
    "medium": (
        "this should be done this week",
        "the line runs at half speed",
        "production goes on after a restart",
        "we get by until friday",
        "it costs us an hour each day",
    ),
}
"""Severity -> clauses."""

FRAMES = (
    "{clause}",
    "{clause}",
    "since monday {clause}",
    "we noticed that {clause}",
    "now {clause}",
    "it seems {clause}",
)
DENIALS = (
    "it is not that {clause}",
    "last month {clause} , that is solved",
    "a colleague wrote that {clause} , but that is not so",
    "that {clause} was the old ticket , please close it",
    "at first we thought that {clause} , which was wrong",
)
"""Around a clause that does not hold."""

OPENERS = ("hello ,", "shift report :", "from the night shift :", "to maintenance :", "good morning ,", "second try :")
PLACE_FRAMES = (
    "the machine stands in {location} .",
    "place : {location} .",
    "you find it in {location} .",
    "this is about {location} .",
)
READING_FRAMES = (
    "reading : {value} .",
    "we measured {value} .",
    "the last check gave {value} .",
    "it was at {value} .",
)

PARTS = (
    "feed pump",
    "gearbox",
    "hydraulic cylinder",
    "conveyor motor",
    "spindle bearing",
    "pressure sensor",
    "heat exchanger",
    "control valve",
    "servo drive",
    "cooling fan",
    "load cell",
    "flow meter",
    "safety relay",
    "air compressor",
    "dosing unit",
    "level switch",
    "vacuum pump",
    "torque transducer",
    "drive belt",
    "power supply",
)
PLACES = ("hall {n}", "line {n} station {m}", "bay {n}", "cell {c}{n}", "press shop {m}", "building {m} level {n}")
UNITS = {
    "leak": "l/min",
    "noise": "dB",
    "overheating": "°C",
    "electrical-fault": "A",
    "calibration": "%",
    "spare-part": "mm",
}
"""Intent -> the unit that its readings most often have."""

QUESTIONS = {
    "PART": ("Which part is affected?", "What is the ticket about?", "Which part should be looked at?"),
    "LOCATION": ("Where does the machine stand?", "In which place is it?", "Where is the affected part?"),
    "VALUE": ("What was measured?", "What was the last reading?", "Which value did the check give?"),
}
"""Kind of entity -> ways to ask for it."""
