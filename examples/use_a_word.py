"""Makes pictures with a learned word, says what its file holds, writes it for others.

python examples/learn_a_word.py
python examples/use_a_word.py [FOLDER OR FILE]
"""

import sys

from ti_flax import convert_embedding, describe_embedding, generate_images
from ti_flax.quickstart.settings import MODEL

learned = sys.argv[1] if len(sys.argv) > 1 else "output/learn_a_word"
print(describe_embedding(file=learned, model=MODEL))
pictures = generate_images(
    model=MODEL,
    embedding=learned,
    prompt=["a photo of a <bumbee>", "a photo of a <bumbee> on a black background"],
    num_images=2,
    steps=20,
    guidance_scale=3.0,
    output="output/use_a_word",
)
print(f"{len(pictures)} pictures of {pictures[0].size} in output/use_a_word")
(file,) = convert_embedding(source=learned, to="a1111", output="output/bumbee.pt")
print(f"for AUTOMATIC1111: {file}")
