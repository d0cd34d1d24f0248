"""Templates of all texts; the fields in braces are filled in from the scene."""

from __future__ import annotations

Templates = dict[str, tuple[str, ...]]

YES_NO: Templates = {
    "existence": (
        "Is there {a}?", "Can you see {a}?", "Does the image show {a}?", "Do you see {a}?",
        "Is {a} in the picture?", "Does the picture contain {a}?", "Is there {a} in the image?",
    ),
    "any": (
        "Are there any {x}?", "Can you see any {x}?", "Does the image show any {x}?",
        "Are any {x} in the picture?", "Do you see any {x} in the image?",
    ),
    "absence": (
        "Is there no {a_bare}?", "Are there no {x} in the image?", "Is the picture without {x}?",
        "Is it true that there are no {x}?", "Does the image show no {x}?",
    ),
    "relation": (
        "Is {a} {rel} {b}?", "Is {a} placed {rel} {b}?", "Is it true that {a} is {rel} {b}?",
        "Can you see {a} {rel} {b}?", "Would you say {a} is {rel} {b}?",
        "In the image, is {a} {rel} {b}?",
    ),
    "more": (
        "Are there more {x} than {y}?", "Can you see more {x} than {y}?",
        "Does the image show more {x} than {y}?", "Do the {x} outnumber the {y}?",
        "Is the number of {x} greater than the number of {y}?",
    ),
    "fewer": (
        "Are there fewer {x} than {y}?", "Can you see fewer {x} than {y}?",
        "Does the image show fewer {x} than {y}?", "Are there less {x} than {y}?",
        "Is the number of {x} smaller than the number of {y}?",
    ),
    "equal": (
        "Are there as many {x} as {y}?", "Is the number of {x} equal to the number of {y}?",
        "Are there equally many {x} and {y}?", "Does the image show as many {x} as {y}?",
        "Can you see as many {x} as {y}?",
    ),
    "larger": (
        "Is {a} larger than {b}?", "Is {a} bigger than {b}?", "Does {a} look larger than {b}?",
        "Would you say {a} is bigger than {b}?", "Is it true that {a} is larger than {b}?",
    ),
    "smaller": (
        "Is {a} smaller than {b}?", "Does {a} look smaller than {b}?",
        "Would you say {a} is smaller than {b}?", "In the image, is {a} smaller than {b}?",
        "Is it true that {a} is smaller than {b}?",
    ),
    "same": (
        "Do {a} and {b} have the same {name}?", "Is {a} of the same {name} as {b}?",
        "Does {a} have the same {name} as {b}?", "Are {a} and {b} of the same {name}?",
        "Do {a} and {b} share the same {name}?",
    ),
    "different": (
        "Do {a} and {b} have different {name}s?", "Do {a} and {b} differ in {name}?",
        "Does {a} have a different {name} than {b}?", "Are {a} and {b} of different {name}s?",
        "Is {a} different in {name} from {b}?",
    ),
}  # fmt: skip

OPEN: Templates = {
    "colour": (
        "What colour is {a}?", "What is the colour of {a}?", "Which colour does {a} have?",
        "Tell me the colour of {a}.", "What color is {a}?", "What is the color of {a}?",
        "Name the colour of {a}.", "Can you tell me what colour {a} is?", "Which colour is {a}?",
    ),
    "shape": (
        "What shape is {a}?", "What is the shape of {a}?", "Which shape does {a} have?",
        "Tell me the shape of {a}.", "Name the shape of {a}.", "Which shape is {a}?",
        "Can you tell me what shape {a} is?",
    ),
    "texture": (
        "Is {a} plain, striped or dotted?", "What texture does {a} have?",
        "What is the texture of {a}?", "Which pattern does {a} have?",
        "Tell me the texture of {a}.",
        "What is the pattern of {a}?", "Is {a} dotted, striped or plain?",
        "Name the texture of {a}.",
    ),
    "size": (
        "Is {a} small or large?", "Is {a} large or small?", "What size is {a}?",
        "What is the size of {a}?", "How large is {a}?", "Which size does {a} have?",
        "How big is {a}?", "Tell me the size of {a}.",
    ),
    "count": (
        "How many {x} are there?", "How many {x} can you see?", "Count the {x}.",
        "What is the number of {x}?", "How many {x} does the image show?",
        "How many {x} are in the picture?", "Tell me how many {x} there are.",
        "How many {x} do you see?",
    ),
}  # fmt: skip

CLAIMS: Templates = {
    "existence": (
        "There is {a}.", "The image shows {a}.", "The picture contains {a}.", "You can see {a}.",
        "There is {a} in the image.",
    ),
    "any": (
        "There is at least one {a_bare}.", "There are one or more {x} in the image.",
        "The image shows at least one {a_bare}.", "The picture contains at least one {a_bare}.",
        "You can see at least one {a_bare}.",
    ),
    "absence": (
        "There is no {a_bare}.", "There are no {x} in the image.", "The image shows no {x}.",
        "The picture does not contain {a}.", "You cannot see any {x}.",
    ),
    "count": (
        "There {verb} exactly {n}.", "The image shows exactly {n}.", "You can see exactly {n}.",
        "The picture contains exactly {n}.", "In the image there {verb} exactly {n}.",
        "There {verb} just {n}.",
    ),
    "attribute": (
        "{a} is {value}.", "In the image, {a} is {value}.", "You can see that {a} is {value}.",
        "It is true that {a} is {value}.", "The picture shows that {a} is {value}.",
    ),
    "relation": (
        "{a} is {rel} {b}.", "{a} is placed {rel} {b}.", "In the image, {a} is {rel} {b}.",
        "You can see {a} {rel} {b}.", "It is true that {a} is {rel} {b}.",
    ),
    "every": (
        "All {x} are {value}.", "All of the {x} are {value}.", "In the image, all {x} are {value}.",
        "You can see that all {x} are {value}.", "All {x} in the picture are {value}.",
    ),
    "more": (
        "There are more {x} than {y}.", "The image shows more {x} than {y}.",
        "The {x} outnumber the {y}.", "You can see more {x} than {y}.",
        "The number of {x} is greater than the number of {y}.",
    ),
    "fewer": (
        "There are fewer {x} than {y}.", "The image shows fewer {x} than {y}.",
        "There are less {x} than {y}.", "You can see fewer {x} than {y}.",
        "The number of {x} is smaller than the number of {y}.",
    ),
    "equal": (
        "There are as many {x} as {y}.", "The image shows as many {x} as {y}.",
        "There are equally many {x} and {y}.", "You can see as many {x} as {y}.",
        "The number of {x} is equal to the number of {y}.",
    ),
    "larger": (
        "{a} is larger than {b}.", "{a} is bigger than {b}.", "{a} looks larger than {b}.",
        "You can see that {a} is larger than {b}.", "In the image, {a} is bigger than {b}.",
    ),
    "smaller": (
        "{a} is smaller than {b}.", "{a} looks smaller than {b}.",
        "You can see that {a} is smaller than {b}.", "In the image, {a} is smaller than {b}.",
        "It is true that {a} is smaller than {b}.",
    ),
    "same": (
        "{a} and {b} have the same {name}.", "{a} has the same {name} as {b}.",
        "{a} and {b} share the same {name}.", "{a} and {b} are of the same {name}.",
        "{a} is of the same {name} as {b}.",
    ),
    "different": (
        "{a} and {b} have different {name}s.", "{a} and {b} differ in {name}.",
        "{a} has a different {name} than {b}.", "{a} and {b} are of different {name}s.",
        "{a} is different in {name} from {b}.",
    ),
}  # fmt: skip

# Claims that no image can confirm: about one thing, about two things, and about kinds.
UNKNOWABLE: Templates = {
    "one": (
        "{a} is {quality}.", "In the image, {a} is {quality}.",
        "{a} belongs to {who}.", "{a} was painted by {who}.", "{who} likes {a}.",
        "{a} was drawn by {who}.", "{a} is made of {stuff}.",
        "{a} was made of {stuff} once.",
        "{a} was {value} yesterday.", "{a} was {value} before.", "{a} will be {value} tomorrow.",
        "There is {hidden} behind {a}.", "There is {hidden} under {a}, but you cannot see it.",
        "{a} hides {hidden}.", "{who} placed {a} there.",
        "{a} will move soon.",
    ),
    "two": (
        "{a} is older than {b}.", "{a} is heavier than {b}.", "{a} was {rel} {b} yesterday.",
        "{a} will be {rel} {b} tomorrow.",
        "{a} was larger than {b} before.", "{who} likes {a} more than {b}.",
        "{a} is more expensive than {b}.", "{a} and {b} belong to {who}.",
        "{a} and {b} have the same age.", "{a} and {b} have the same weight.",
    ),
    "kinds": (
        "There are more {x} outside the image.", "All {x} are {quality}.", "{who} likes {x}.",
        "All {x} belong to {who}.", "There were more {x} yesterday.",
        "There will be no {x} tomorrow.", "You can see that all {x} are made of {stuff}.",
        "Another picture shows more {x}.",
    ),
}  # fmt: skip
QUALITIES = (
    "heavy", "old", "new", "expensive", "cheap", "soft", "hard", "warm", "cold", "wet",
    "hollow", "magnetic", "sweet",
)  # fmt: skip
STUFF = ("wood", "metal", "glass", "paper", "stone")
WHO = ("Anna", "Tom", "a child", "a teacher", "an artist", "my friend")
HIDDEN = ("a cat", "a dog", "a coin", "a key", "a small mouse", "a letter")

CAPTIONS: Templates = {
    "relation": (
        "{a} {rel} {b}.", "{a} is {rel} {b}.", "There is {a} {rel} {b}.",
        "A picture of {a} {rel} {b}.", "The image shows {a} {rel} {b}.",
        "You can see {a} {rel} {b}.",
    ),
    "both": (
        "{a} and {b}.", "An image with {a} and {b}.", "A picture of {a} and {b}.",
        "There is {a} and {b}.", "The image shows {a} and {b}.",
    ),
    "count": (
        "Exactly {n}.", "A picture of exactly {n}.", "An image with exactly {n}.",
        "There {verb} exactly {n}.", "The image shows exactly {n}.",
    ),
    "third": (
        "{a} {rel} {b}, and {c}.", "{a} {rel} {b}, with {c}.",
    ),
}  # fmt: skip

STATEMENTS: Templates = {
    "both": (
        "Both images contain {a}.", "There is {a} in both images.", "Both images show {a}.",
        "{a} is in both pictures.", "You can see {a} in each image.",
    ),
    "one": (
        "Exactly one image shows {a}.", "Only one of the images contains {a}.",
        "There is {a} in exactly one image.", "Just one of the two pictures shows {a}.",
        "You can see {a} in only one image.",
    ),
    "neither": (
        "Neither image contains {a}.", "Neither image shows {a}.",
        "There is no {a_bare} in either image.", "Neither of the two pictures contains {a}.",
        "You cannot see {a} in either image.",
    ),
    "either": (
        "At least one image contains {a}.", "There is {a} in at least one image.",
        "At least one of the two pictures shows {a}.", "You can see {a} in at least one image.",
        "One or both of the images contain {a}.",
    ),
    "side": (
        "The {side} image contains {a}.", "There is {a} in the {side} image.",
        "The {side} picture shows {a}.", "You can see {a} in the image on the {side}.",
        "In the {side} image there is {a}.",
    ),
    "side only": (
        "Only the {side} image contains {a}.", "Only the picture on the {side} shows {a}.",
        "There is {a} in the {side} image only.", "You can see {a} only on the {side}.",
        "The {side} image shows {a}, but the other does not.",
    ),
    "side count": (
        "The {side} image has exactly {n}.", "There {verb} exactly {n} in the {side} image.",
        "The {side} picture shows exactly {n}.", "On the {side} you can see exactly {n}.",
        "In the {side} image there {verb} exactly {n}.",
    ),
    "total": (
        "There {verb} {n} in total.", "In total, the two images show {n}.",
        "Both images together contain {n}.", "You can see {n} in total.",
        "The two pictures together show {n}.",
    ),
    "more": (
        "There are more {x} on the {side} than on the {other}.",
        "The {side} image has more {x} than the {other} image.",
        "The {side} image shows more {x} than the {other} one.",
        "You can see more {x} on the {side} than on the {other}.",
        "The {other} image has fewer {x} than the {side} image.",
    ),
    "equal": (
        "Both images have the same number of {x}.", "The two images show equally many {x}.",
        "There are as many {x} on the {side} as on the {other}.",
        "The {side} image has as many {x} as the {other} image.",
        "The number of {x} is the same in both pictures.",
    ),
}  # fmt: skip

FILLERS = (QUALITIES, STUFF, WHO, HIDDEN)
EVERY = (YES_NO, OPEN, CLAIMS, UNKNOWABLE, CAPTIONS, STATEMENTS)
