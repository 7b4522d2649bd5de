class ThoughtPiece(str):
    """A piece of the thought before an answer, among the pieces of its text."""

    __slots__ = ()


class RefusalPiece(str):
    """A piece of the refusal that is given in place of an answer in a response format: it fits no schema."""

    __slots__ = ()
