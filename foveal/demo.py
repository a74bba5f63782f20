"""`make demo`: the embedded model is asked about the shipped picture and the shipped clip."""

from __future__ import annotations

from pathlib import Path

ASSETS = Path(__file__).parent / "assets" / "demo"
QUESTIONS = (
    (ASSETS / "picture.png", "What colour is the star?"),
    (ASSETS / "picture.png", "Describe the picture."),
    (ASSETS / "clip.mp4", "What appears first?"),
    (ASSETS / "clip.mp4", "How many things appear in the clip?"),
)


def main() -> None:
    """Ask, stream the answers, and say what each took."""
    import foveal

    model = foveal.load()
    weights = model.processor.config.num_parameters / 1e6
    print(f"foveal {foveal.__version__} with {model.name}: {weights:.1f} M weights, on the CPU\n")
    for file, question in QUESTIONS:
        print(f"{file.name}: {question}\n> ", end="")
        reply = model.ask(question, file)
        for text in reply:
            print(text, end="", flush=True)
        print(f"\n  {reply.answer.stats.line()}\n")


if __name__ == "__main__":
    main()
