"""Fine-tuning, thin over transformers.Trainer.

windows     training histories cut into pieces that fit the context
sampling    windows of similar length side by side
objectives  the loss after every event
schedule    what some adapters do at every step
trainer     transformers.Trainer with our batches, checkpoints and validation
finetune    the whole run: data, model, training, test, model folder
"""
