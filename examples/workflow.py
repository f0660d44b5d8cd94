"""A workflow of three steps with a language model: outline, draft, review.

    taskservice login
    python examples/workflow.py "a topic"

Each step appears in the log while it runs, and in the output when it has ended, so a person can
watch the progress. `Model` is a fake: replace it with a real one.
"""

import logging
import sys

from taskservice.client import Client, TaskHandler

STEPS = ("Outline", "Draft", "Review")
logger = logging.getLogger("workflow")


class Model:
    """A fake language model with fixed answers."""

    def ask(self, prompt: str) -> str:
        logger.info("prompt: %s", prompt)
        verb, _, rest = prompt.partition(": ")
        answer = {
            "Outline": f"1. What {rest} is. 2. What {rest} is for.",
            "Draft": f"{rest.removesuffix('.')}, in two paragraphs.",
            "Review": "Fine as it is.",
        }[verb]
        logger.info("answer: %s", answer)
        return answer


def main(topic: str) -> None:
    model = Model()
    with Client().start("writer", name=topic, input={"topic": topic}) as task:
        logging.getLogger().addHandler(TaskHandler(task))
        logging.getLogger().setLevel(logging.INFO)
        text = topic
        for number, step in enumerate(STEPS, 1):
            with task.step(step):
                text = model.ask(f"{step}: {text}")
            task.output[step.lower()] = text
            task.report(output={step.lower(): text})
            task.progress(number, len(STEPS), "steps")


if __name__ == "__main__":
    main(" ".join(sys.argv[1:]))
