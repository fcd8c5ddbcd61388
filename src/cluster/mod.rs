//! One program on many machines. Under construction: what is here decides, and is tested in
//! simulation; nothing yet carries its messages between real processes.
//!
//! The control logic is a set of state machines without sockets, clocks or threads: the [`head`]
//! places what nodes pass on, a [`node`] admits and runs, an [`owner`] (each process that submits
//! tasks is one) knows the fate of its own tasks and objects. Each takes a message or the passing of
//! time and answers with [`Effects`](protocol::Effects). The [`simulation`] runs thousands of them in
//! one thread, in virtual time, and breaks what lies between them.

#![cfg_attr(not(test), allow(dead_code))] // what carries the messages will use the rest

mod capacity;
mod head;
mod node;
mod owner;
mod protocol;
pub mod simulation;
