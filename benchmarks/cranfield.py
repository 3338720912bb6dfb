"""Write the Cranfield collection as 1,400 one-page text files and a questions file for `docmind evaluate`.

    python benchmarks/cranfield.py ../shared/data/qa/cranfield/cranfield.json FOLDER
    docmind --home HOME add FOLDER/texts
    docmind --home HOME evaluate FOLDER/questions.jsonl
"""

import json
import sys
from pathlib import Path


def main(source: Path, folder: Path) -> None:
    collection = json.loads(source.read_text(encoding="utf-8"))
    texts = folder / "texts"
    texts.mkdir(parents=True, exist_ok=True)
    for number, _title, text in collection["docs"]:
        (texts / f"{number}.txt").write_text(text, encoding="utf-8")
    with (folder / "questions.jsonl").open("w", encoding="utf-8") as file:
        # Relevance judgements are numbered by the query's place in the list, from 1.
        for number, query in enumerate(collection["queries"], start=1):
            judged = collection["rel"].get(str(number), {})
            relevant = [{"doc": f"{doc}.txt", "page": 1, "grade": grade} for doc, grade in judged.items()]
            file.write(json.dumps({"question": query, "relevant": relevant}) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
