"""What models cost: the price book for people, and what is wrong with one."""
