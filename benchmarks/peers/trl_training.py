"""Training with the SFTTrainer of trl as a job: its own data preparation, and its defaults for unset options."""

import json
import shutil
from pathlib import Path

from datasets import Dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

from benchmarks.peers import process, steps


def work(arguments: process.Result) -> process.Result:
    """Train one epoch on the conversations in order."""
    steps.disable_shuffling()
    conversations = json.loads(Path(arguments["conversations"]).read_text())
    rows = Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": question}],
                "completion": [{"role": "assistant", "content": answer}],
            }
            for question, answer in conversations
        ]
    )
    config = SFTConfig(
        output_dir=str(Path(arguments["scratch"]) / "output"),
        num_train_epochs=1,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        **arguments["config"],
    )
    lora = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", **arguments["lora"])
    clock = steps.StepClock()
    trainer = SFTTrainer(
        arguments["model"], config, train_dataset=rows, peft_config=lora, callbacks=[steps.clock_callback(clock)]
    )
    trainer.train()
    adapter = Path(arguments["scratch"]) / "adapter"
    trainer.model.save_pretrained(adapter)
    shutil.copy(adapter / steps.ADAPTER, arguments["adapter"])
    a_step = config.per_device_train_batch_size * config.gradient_accumulation_steps
    return clock.result(steps.tokens_by_step(trainer.train_dataset, a_step))


if __name__ == "__main__":
    process.run_as_job(work)
