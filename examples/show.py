"""Print some answers of a batch output file in readable form."""

import argparse
import json
import textwrap
from pathlib import Path


def main() -> None:
    """Read the output file named on the command line and print its first answers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--most", type=int, default=5, help="answers to print")
    arguments = parser.parse_args()
    with arguments.output.open(encoding="utf-8") as lines:
        for line, _ in zip(lines, range(arguments.most), strict=False):
            record = json.loads(line)
            body = record["response"]["body"]
            print(f"--- {record['custom_id']}")
            if "error" in body:
                print(f"error: {body['error']['message']}")
                continue
            for choice in body["choices"]:
                text = choice["message"]["content"] if "message" in choice else choice["text"]
                print(textwrap.indent(textwrap.fill(text.strip(), 90), "  "))


if __name__ == "__main__":
    main()
