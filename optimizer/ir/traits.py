"""Traits of operators: what analyses and passes need to know of one, said once.

`operators.py` has them for ATen's operators, `define_op` takes them for each of the dialect. What
wants to know something of an operator asks for a trait; no file has a list of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, Flag, auto


class Move(Flag):
    """How an operator moves elements of its operands without computing any."""

    NONE = 0
    COPY = auto()
    CAST = auto()
    RESHAPE = auto()
    UNSQUEEZE = auto()
    SQUEEZE = auto()
    TRANSPOSE = auto()
    EXPAND = auto()
    REPEAT = auto()
    SELECT = auto()
    SLICE = auto()
    SPLIT = auto()
    ITEM = auto()
    JOIN = auto()
    PICK = auto()
    GATHER = auto()
    #: Every element once, at another index.
    VIEW = RESHAPE | UNSQUEEZE | SQUEEZE | TRANSPOSE
    #: Some of one dimension's elements.
    PART = SELECT | SLICE


class OnRows(Enum):
    """What an operator does to the rows of a batch."""

    #: Elementwise: each row by itself, operands broadcast.
    APART = auto()
    #: Where its first operand has them.
    SAME = auto()
    #: As its `Move` says.
    MOVED = auto()
    #: Reduces, scans or sorts along the dimensions it is given.
    ALONG = auto()
    #: Reduces the last dimension against a weight.
    LINEAR = auto()
    #: Reduces a dimension of one operand against one of the other.
    PRODUCT = auto()
    #: The same, and adds.
    ADDED_PRODUCT = auto()
    #: Where the ids have them.
    LOOKUP = auto()
    #: Picks along a dimension by an index of the operand's rank.
    GATHER = auto()
    #: Picks by lists of indices.
    INDEX = auto()
    #: Mixes the last dimension but one.
    ATTENTION = auto()
    #: Normalizes the last dimensions.
    NORM = auto()
    #: Along the first dimension, each with parameters.
    FIRST = auto()
    #: Sequences, whose states have them in the second dimension.
    RECURRENT = auto()
    #: Adds entries to the last dimensions.
    PAD = auto()
    #: Picks of the last two dimensions by place.
    MATRICES = auto()
    #: Makes as many as it is told, all alike.
    MADE = auto()
    #: Makes as many as its second operand has.
    BROADCAST = auto()
    #: Mixes them, or moves them where they can't be followed.
    LOST = auto()


class Values(Enum):
    """How the values of a result follow from those of the operands."""

    #: Not at all, as far as is known.
    ANY = auto()
    #: Those of the first operand, each once, some, or several times.
    SAME = auto()
    CAST = auto()
    JOINED = auto()
    #: Those of the first operand at places that another operand says.
    PICKED = auto()
    INDEXED = auto()
    LOOKED_UP = auto()
    #: The least or the largest along some dimensions.
    EXTREME = auto()
    MEAN = auto()
    SUM = auto()
    CUMULATED = auto()
    #: A function of one number that never falls.
    RISING = auto()
    #: To a whole number near it.
    ROUNDED = auto()
    #: One that rises but for a dip below zero.
    DIPPING = auto()
    #: One that falls over positive numbers.
    FALLING = auto()
    RECTIFIED = auto()
    SIGN = auto()
    NEGATED = auto()
    ABSOLUTE = auto()
    #: From -1 to 1, up and down.
    WAVE = auto()
    #: Positive and summing up to 1.
    WEIGHTS = auto()
    LOG_WEIGHTS = auto()
    CLAMPED = auto()
    CLAMPED_BY_TENSORS = auto()
    #: The larger, or the smaller, of two.
    LARGER = auto()
    ADD = auto()
    SUBTRACT = auto()
    SUBTRACT_REVERSED = auto()
    MULTIPLY = auto()
    DIVIDE = auto()
    DIVIDE_ROUNDED = auto()
    FLOOR_DIVIDE = auto()
    REMAINDER = auto()
    FMOD = auto()
    POWER = auto()
    AND = auto()
    XOR = auto()
    SHIFT_LEFT = auto()
    SHIFT_RIGHT = auto()
    LESS = auto()
    LESS_OR_EQUAL = auto()
    GREATER = auto()
    GREATER_OR_EQUAL = auto()
    EQUAL = auto()
    UNEQUAL = auto()
    CHOSEN = auto()
    FILLED = auto()
    LINEAR = auto()
    PRODUCT = auto()
    #: Dot products of pairs of rows.
    PAIRS = auto()
    NORMED = auto()
    ROOT_NORMED = auto()
    ATTENDED = auto()
    LENGTH = auto()
    SORTED = auto()
    #: Positions along a dimension.
    PLACE = auto()
    #: Positions among boundaries.
    BUCKET = auto()
    COUNTING = auto()
    #: The number that it is given, at its second place, or at its first.
    CONSTANT = auto()
    CONSTANT_LIKE = auto()
    SCALAR = auto()
    ZERO = auto()
    ONE = auto()
    #: 0 or 1.
    BIT = auto()
    #: Ids that are refused beyond their table.
    BOUNDED = auto()
    #: Ids that count from the end where they are negative.
    WRAPPED = auto()


COMPARISONS = (
    *(Values.LESS, Values.LESS_OR_EQUAL, Values.GREATER, Values.GREATER_OR_EQUAL),
    *(Values.EQUAL, Values.UNEQUAL),
)


class Flops(Enum):
    """How the floating-point operations of an operator are counted."""

    #: None, and no bytes: kernels read through it.
    FREE = auto()
    #: One an element of the result.
    ELEMENTS = auto()
    #: Two a weight and row.
    LINEAR = auto()
    #: Two a term of each sum.
    PRODUCT = auto()
    #: Two an element of the rows and each row they meet.
    PAIRS = auto()
    #: None; rows are read and written.
    LOOKUP = auto()
    #: The same, of codes.
    CODED_LOOKUP = auto()


class Coded(Enum):
    """Whether a number format other than its own may hold what an operator reads."""

    NO = auto()
    #: Its weight or its table can be given codes.
    CAN = auto()
    #: It reads codes.
    IS = auto()


class NotFinite(Enum):
    """What becomes of a NaN or an infinity in a row of the operands."""

    #: It may be dropped.
    DROPPED = auto()
    #: It is all over the row of the result.
    SPREAD = auto()
    #: Each element that was computed of it isn't finite.
    KEPT = auto()
    #: NaN stays; infinity may become a number.
    BOUNDED = auto()
    #: It goes where its row, or part of it, goes.
    MOVED = auto()
    PARTED = auto()
    #: Some elements of the row aren't finite.
    MIXED = auto()


class Rounding(Enum):
    """Whether the result depends on how it is computed."""

    #: By kernel and order.
    ANY = auto()
    #: Rounded once, as IEEE 754 says.
    ONCE = auto()
    #: Nothing is rounded: numbers are chosen, moved or retyped.
    NONE = auto()


@dataclass(frozen=True)
class Traits:
    """What is known of an operator.

    Attributes:
        rows: What it does to the rows of a batch.
        values: How its values follow from its operands'.
        move: How it moves elements without computing.
        flops: How its operations are counted.
        learned: The places of arguments that training moves, if they are parameters.
        tables: The places of arguments that training moves if tables are learned too.
        coded: Whether codes may hold what it reads.
        lookup: The places of the table and of the ids, of an operator that looks rows up.
        not_finite: What becomes of NaN and infinity.
        rounding: Whether its result depends on how it is computed.
        level: Whether results are within fixed bounds, or of a spread of their own, whatever they
            are made from.
        flat: Whether its derivative is zero wherever it exists.
        asserts: Whether it only checks, and gives nothing.
    """

    rows: OnRows
    values: Values = Values.ANY
    move: Move = Move.NONE
    flops: Flops = Flops.ELEMENTS
    learned: tuple[int, ...] = ()
    tables: tuple[int, ...] = ()
    coded: Coded = Coded.NO
    lookup: tuple[int, int] | None = None
    not_finite: NotFinite = NotFinite.DROPPED
    rounding: Rounding = Rounding.ANY
    level: bool = False
    flat: bool = False
    asserts: bool = False
