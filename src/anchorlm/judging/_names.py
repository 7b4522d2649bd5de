from __future__ import annotations

ENGLISH = "english"
"""What artifacts and reports call the refusal head and what stands on it. The phrase matcher is part of it."""

HARM = "harm"
"""The same of the harm head, which reads the refusal head, too."""

THEN = ", then "
"""Between the names of a judge that decides the clear cases and the one that decides the others."""
