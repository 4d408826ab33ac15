"""Fine-tuning, thin over transformers.Trainer.

windows     training histories cut into pieces that fit the context
sampling    windows of similar length side by side
objectives  the loss after every event
item_loss   of items, whole or against a few others
losses      of the next item against a few others: sampled softmax, gBCE
negatives   the few others
schedule    what some adapters do at every step
trainer     transformers.Trainer with our batches, checkpoints and validation
base        what fine-tuning and pretraining share of that
views       windows cut, hidden in part, in another order, in other words
augmentation  events left out
contrastive two views of a window told from others
adversarial input vectors moved to where the loss grows
fairness    predictions kept the same where a feature of the user is another
language    masked and causal language modelling on the rendered log
pretraining that, before fine-tuning
pseudo_labels  confident predictions as labels
finetune    the whole run: data, model, training, test, model folder
"""
