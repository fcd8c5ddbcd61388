//! Which functions can be tasks, methods and constructors. These traits are implemented for all
//! functions that fit; there is nothing to implement or derive.

use crate::{
    local::{
        actor::{MethodKind, ReadGuard, WriteGuard},
        task::{BoxFuture, Step},
    },
    object::Object,
};
use futures_core::Stream;
use std::{future::Future, pin::Pin};

mod marker {
    #![allow(missing_debug_implementations, missing_docs, unreachable_pub)]
    pub struct Blocking;
    pub struct Async;
    pub struct ByMut;
    pub struct ByRef;
    pub struct AsyncByMut;
    pub struct AsyncByRef;
    pub struct Iterating;
    pub struct Streaming;
}
use marker::*;

/// A function that can run as a task: a function item, a method, a generic instance, a closure
/// that captures nothing, or an `async fn`, of up to eight arguments that are
/// [`Object`](crate::Object)s and with a result that is one.
///
/// If the compiler says that an implementation of `Deserialize` is not general enough, an argument or
/// the result borrows: take `String` instead of `&str`.
///
/// `M` says whether it is `async`; it is inferred.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot run as a task with these arguments",
    label = "not a task function",
    note = "a task is a function, method, generic instance, non-capturing closure or `async fn` of up to 8 arguments",
    note = "every argument and the result must be `Serialize + DeserializeOwned + Send + Sync + 'static`: take `String` instead of `&str`, `Vec<T>` or `Arc<Vec<T>>` instead of `&[T]`, derive serde's traits for your own types, use `Arc` instead of `Rc`, and a serializable error type instead of `std::io::Error`, for example its text",
    note = "pass what a closure would capture as an argument"
)]
pub trait RemoteFn<Args, M>: Clone + Send + Sync + 'static {
    /// What the task's handle yields.
    type Out: Object;
    #[doc(hidden)]
    fn invoke(self, args: Args) -> Step<Self::Out>;
}

/// A function that can run as a method of an actor whose state is `S`.
///
/// `fn(&mut S, ..)` runs alone; `fn(&S, ..)` runs side by side with its like; `async fn`s of both
/// kinds give their thread back while they wait. `M` says which; it is inferred.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be called on an actor of `{S}` with these arguments",
    label = "not a method of this actor",
    note = "a method is a `fn(&mut {S}, ..)`, `fn(&{S}, ..)` or an `async fn` of either kind, of up to 8 more arguments",
    note = "every argument and the result must be `Serialize + DeserializeOwned + Send + Sync + 'static`; futures must be `Send`",
    note = "this actor's state is a `{S}`: call its own methods, or a closure that takes `&mut {S}` or `&{S}`",
    note = "if the constructor returns `Result<State, _>`, build the actor with `.fallible()`"
)]
pub trait Method<S, Args, M>: Clone + Send + Sync + 'static {
    /// What the call's handle yields.
    type Out: Object;
    #[doc(hidden)]
    const KIND: MethodKind;
    #[doc(hidden)]
    fn call_exclusive(self, _: &mut S, _: Args) -> Self::Out {
        unreachable!("only called for its kind")
    }
    #[doc(hidden)]
    fn call_shared(self, _: &S, _: Args) -> Self::Out {
        unreachable!("only called for its kind")
    }
    #[doc(hidden)]
    fn future_exclusive(self, _: WriteGuard<S>, _: Args) -> BoxFuture<Self::Out> {
        unreachable!("only called for its kind")
    }
    #[doc(hidden)]
    fn future_shared(self, _: ReadGuard<S>, _: Args) -> BoxFuture<Self::Out> {
        unreachable!("only called for its kind")
    }
}

/// A function that makes an actor's state.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot construct an actor from these arguments",
    label = "not a constructor",
    note = "a constructor is a function, or a closure that captures nothing, of up to 8 arguments that returns the actor's state",
    note = "every argument must be `Serialize + DeserializeOwned + Send + Sync + 'static`, the state `Send + Sync + 'static`",
    note = "a state needs no `RefCell`, `Rc` or `Mutex`: methods that change it take `&mut self`, and run alone"
)]
pub trait Constructor<Args>: Clone + Send + Sync + 'static {
    /// The actor's state.
    type State: Send + Sync + 'static;
    #[doc(hidden)]
    fn construct(self, args: Args) -> Self::State;
}

/// A function that yields items one after the other: it returns an `Iterator` or a
/// [`Stream`](futures_core::Stream) that is `Send + 'static`. `M` says which; it is inferred.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot run as a streaming task with these arguments",
    label = "does not return an iterator or a stream",
    note = "it must return an `Iterator` or a `futures_core::Stream` that is `Send + 'static`, of items that are `Serialize + DeserializeOwned + Send + Sync + 'static`"
)]
pub trait StreamFn<Args, M>: Clone + Send + Sync + 'static {
    /// What the stream's handles yield.
    type Item: Object;
    #[doc(hidden)]
    fn produce(self, args: Args) -> Producer<Self::Item>;
}

#[doc(hidden)]
#[allow(missing_debug_implementations)]
pub enum Producer<T> {
    Iterator(Box<dyn Iterator<Item = T> + Send>),
    Stream(Pin<Box<dyn Stream<Item = T> + Send>>),
}

// `async fn(&mut S, ..)` returns a future that borrows the state: a type for each lifetime. These
// helpers name it, and say that it is `Send`, which `AsyncFn` bounds cannot.
macro_rules! async_method_helpers {
    ($($by_mut:ident $by_ref:ident ($($A:ident $a:ident),*);)*) => {$(
        #[doc(hidden)]
        #[allow(clippy::too_many_arguments)] // as many as a method may have
        pub trait $by_mut<'a, S: 'a, $($A),*>: Clone {
            type Out;
            fn start(self, state: &'a mut S, $($a: $A),*) -> Pin<Box<dyn Future<Output = Self::Out> + Send + 'a>>;
        }
        impl<'a, F, S: 'a, Fut, $($A),*> $by_mut<'a, S, $($A),*> for F
        where
            F: Fn(&'a mut S, $($A),*) -> Fut + Clone,
            Fut: Future + Send + 'a,
        {
            type Out = Fut::Output;
            fn start(self, state: &'a mut S, $($a: $A),*) -> Pin<Box<dyn Future<Output = Self::Out> + Send + 'a>> {
                Box::pin(self(state, $($a),*))
            }
        }
        #[doc(hidden)]
        #[allow(clippy::too_many_arguments)]
        pub trait $by_ref<'a, S: 'a, $($A),*>: Clone {
            type Out;
            fn start(self, state: &'a S, $($a: $A),*) -> Pin<Box<dyn Future<Output = Self::Out> + Send + 'a>>;
        }
        impl<'a, F, S: 'a, Fut, $($A),*> $by_ref<'a, S, $($A),*> for F
        where
            F: Fn(&'a S, $($A),*) -> Fut + Clone,
            Fut: Future + Send + 'a,
        {
            type Out = Fut::Output;
            fn start(self, state: &'a S, $($a: $A),*) -> Pin<Box<dyn Future<Output = Self::Out> + Send + 'a>> {
                Box::pin(self(state, $($a),*))
            }
        }
    )*};
}

macro_rules! functions {
    ($($by_mut:ident $by_ref:ident ($($A:ident $a:ident),*);)*) => {
        async_method_helpers! { $($by_mut $by_ref ($($A $a),*);)* }
        $(
            impl<F, R: Object, $($A: Object),*> RemoteFn<($($A,)*), Blocking> for F
            where
                F: Fn($($A),*) -> R + Clone + Send + Sync + 'static,
            {
                type Out = R;
                fn invoke(self, ($($a,)*): ($($A,)*)) -> Step<R> {
                    Step::Value(self($($a),*))
                }
            }

            impl<F, Fut, R: Object, $($A: Object),*> RemoteFn<($($A,)*), Async> for F
            where
                F: Fn($($A),*) -> Fut + Clone + Send + Sync + 'static,
                Fut: Future<Output = R> + Send + 'static,
            {
                type Out = R;
                fn invoke(self, ($($a,)*): ($($A,)*)) -> Step<R> {
                    Step::Future(Box::pin(self($($a),*)))
                }
            }

            impl<F, S, $($A: Object),*> Constructor<($($A,)*)> for F
            where
                F: Fn($($A),*) -> S + Clone + Send + Sync + 'static,
                S: Send + Sync + 'static,
            {
                type State = S;
                fn construct(self, ($($a,)*): ($($A,)*)) -> S {
                    self($($a),*)
                }
            }

            impl<F, Items, T: Object, $($A: Object),*> StreamFn<($($A,)*), Iterating> for F
            where
                F: Fn($($A),*) -> Items + Clone + Send + Sync + 'static,
                Items: Iterator<Item = T> + Send + 'static,
            {
                type Item = T;
                fn produce(self, ($($a,)*): ($($A,)*)) -> Producer<T> {
                    Producer::Iterator(Box::new(self($($a),*)))
                }
            }

            impl<F, Items, T: Object, $($A: Object),*> StreamFn<($($A,)*), Streaming> for F
            where
                F: Fn($($A),*) -> Items + Clone + Send + Sync + 'static,
                Items: Stream<Item = T> + Send + 'static,
            {
                type Item = T;
                fn produce(self, ($($a,)*): ($($A,)*)) -> Producer<T> {
                    Producer::Stream(Box::pin(self($($a),*)))
                }
            }

            impl<F, S, R: Object, $($A: Object),*> Method<S, ($($A,)*), ByMut> for F
            where
                F: Fn(&mut S, $($A),*) -> R + Clone + Send + Sync + 'static,
            {
                type Out = R;
                const KIND: MethodKind = MethodKind::Exclusive;
                fn call_exclusive(self, state: &mut S, ($($a,)*): ($($A,)*)) -> R {
                    self(state, $($a),*)
                }
            }

            impl<F, S, R: Object, $($A: Object),*> Method<S, ($($A,)*), ByRef> for F
            where
                F: Fn(&S, $($A),*) -> R + Clone + Send + Sync + 'static,
            {
                type Out = R;
                const KIND: MethodKind = MethodKind::Shared;
                fn call_shared(self, state: &S, ($($a,)*): ($($A,)*)) -> R {
                    self(state, $($a),*)
                }
            }

            impl<F, S, R: Object, $($A: Object),*> Method<S, ($($A,)*), AsyncByMut> for F
            where
                F: for<'a> $by_mut<'a, S, $($A,)* Out = R> + Clone + Send + Sync + 'static,
                S: Send + Sync + 'static,
            {
                type Out = R;
                const KIND: MethodKind = MethodKind::AsyncExclusive;
                fn future_exclusive(self, mut state: WriteGuard<S>, ($($a,)*): ($($A,)*)) -> BoxFuture<R> {
                    Box::pin(async move {
                        let Some(state) = state.as_mut() else { unreachable!("an actor with no state starts no call") };
                        self.start(state, $($a),*).await
                    })
                }
            }

            impl<F, S, R: Object, $($A: Object),*> Method<S, ($($A,)*), AsyncByRef> for F
            where
                F: for<'a> $by_ref<'a, S, $($A,)* Out = R> + Clone + Send + Sync + 'static,
                S: Send + Sync + 'static,
            {
                type Out = R;
                const KIND: MethodKind = MethodKind::AsyncShared;
                fn future_shared(self, state: ReadGuard<S>, ($($a,)*): ($($A,)*)) -> BoxFuture<R> {
                    Box::pin(async move {
                        let Some(state) = state.as_ref() else { unreachable!("an actor with no state starts no call") };
                        self.start(state, $($a),*).await
                    })
                }
            }
        )*
    };
}

functions! {
    AsyncMut0 AsyncRef0 ();
    AsyncMut1 AsyncRef1 (A a);
    AsyncMut2 AsyncRef2 (A a, B b);
    AsyncMut3 AsyncRef3 (A a, B b, C c);
    AsyncMut4 AsyncRef4 (A a, B b, C c, D d);
    AsyncMut5 AsyncRef5 (A a, B b, C c, D d, E e);
    AsyncMut6 AsyncRef6 (A a, B b, C c, D d, E e, G g);
    AsyncMut7 AsyncRef7 (A a, B b, C c, D d, E e, G g, H h);
    AsyncMut8 AsyncRef8 (A a, B b, C c, D d, E e, G g, H h, I i);
}
