"""What a user does with the rooms: pretrain, collect, embed, plan, inspect."""
