"""Fine-tuning, thin over transformers.Trainer.

windows     training histories cut into pieces that fit the context
sampling    windows of similar length side by side
objectives  the loss after every event
losses      of the next item against a few others: sampled softmax, gBCE
negatives   the few others
schedule    what some adapters do at every step
trainer     transformers.Trainer with our batches, checkpoints and validation
finetune    the whole run: data, model, training, test, model folder
"""
