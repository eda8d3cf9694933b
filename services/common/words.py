"""What two services know about words."""


def english_singular(word: str) -> str:
    """A lower-case English word without a regular plural's ending: "cities" → "city", "boxes" → "box", "cards" → "card"."""
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 4 and word.endswith(("sses", "shes", "ches", "xes", "zes")):
        return word[:-2]
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word
