"""trl's SFTTrainer as a job: the same conversations, its own preparation, its defaults but for what it is told."""

import json
import shutil
from pathlib import Path

from datasets import Dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

from benchmarks.peers import process, steps


def work(arguments: process.Result) -> process.Result:
    """Train on the conversations in order, once."""
    steps.read_in_order()
    said = json.loads(Path(arguments["conversations"]).read_text())
    rows = Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": asked}],
                "completion": [{"role": "assistant", "content": answer}],
            }
            for asked, answer in said
        ]
    )
    told = arguments["config"]
    config = SFTConfig(
        output_dir=str(Path(arguments["scratch"]) / "output"),
        num_train_epochs=1,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        **told,
    )
    lora = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", **arguments["lora"])
    clock = steps.Clock()
    trainer = SFTTrainer(
        arguments["model"], config, train_dataset=rows, peft_config=lora, callbacks=[steps.callback(clock)]
    )
    trainer.train()
    saved = Path(arguments["scratch"]) / "adapter"
    trainer.model.save_pretrained(saved)
    shutil.copy(saved / steps.ADAPTER, arguments["adapter"])
    a_step = config.per_device_train_batch_size * config.gradient_accumulation_steps
    return clock.found(steps.tokens_by_step(trainer.train_dataset, a_step))


if __name__ == "__main__":
    process.job(work)
