"""Sentences that decline to answer: what DPO (idk) prefers to the forget answer."""

REFUSALS: tuple[str, ...] = (
    "I'm afraid I don't know that.",
    "I don't know the answer to that question.",
    "I have no information about that.",
    "That is something I can't tell you.",
    "I never learned anything about this.",
    "I'm not able to answer that one.",
    "Sorry, the answer is unknown to me.",
    "I can't say; I have no knowledge of it.",
    "This lies outside what I know.",
    "I would only be guessing, so I'd rather not say.",
    "I have nothing to tell you about that.",
    "No answer to this question comes to my mind.",
    "I'm not familiar with that at all.",
    "Unfortunately, I can't help you with this question.",
    "That is not a thing I have been taught.",
    "I honestly have no idea.",
    "My knowledge does not reach that far.",
    "I must admit that I don't know.",
    "I can't give you a reliable answer to that.",
    "Please ask someone else; I know nothing of it.",
)
"""Twenty short refusals, all different, none naming a subject."""
