"""Draw the picture that other sites show beside a link to the documentation: nbs/images/social-card.png."""
from itertools import islice
from pathlib import Path

from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

from clip_ft.demo import draw_product, product

OUT = Path(__file__).resolve().parent.parent / "nbs" / "images" / "social-card.png"
SIZE = (1200, 630)
SIDE = 216  # of a product, in pixels
BLUE, GREY = "#1f5f8b", "#dfe6ec"


def font(size, weight="normal"):
    "DejaVu Sans, which Matplotlib installs."
    properties = font_manager.FontProperties(family="DejaVu Sans", weight=weight)
    return ImageFont.truetype(font_manager.findfont(properties), size)


def blue_jeans(count):
    "The first pairs of blue jeans of the demo catalogue."
    products = (product(0, i) for i in range(100_000))
    return islice((p for p in products if p.category == "Jeans" and p.colour == "blue"), count)


def main():
    card = Image.new("RGB", SIZE, "white")
    pen = ImageDraw.Draw(card)
    pen.rectangle((0, 0, SIZE[0], 190), fill=BLUE)
    pen.text((48, 34), "clip_ft", font=font(64, "bold"), fill="white")
    pen.text((48, 124), "Fine-tune CLIP on a product catalogue, and search it", font=font(32), fill="white")
    pen.rounded_rectangle((48, 230, SIZE[0] - 48, 310), 14, fill="white", outline=GREY, width=4)
    pen.text((78, 270), "blue jeans", font=font(36), fill="#222222", anchor="lm")
    for i, found in enumerate(blue_jeans(5)):
        left = 48 + i * (SIDE + 6)
        card.paste(draw_product(found, SIDE), (left, 346))
    card.quantize(96, dither=Image.Dither.NONE).save(OUT, optimize=True)


if __name__ == "__main__":
    main()
