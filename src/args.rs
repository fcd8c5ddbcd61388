//! Arguments: values, or handles whose values the task waits for.

#[cfg(feature = "cluster")]
use crate::serial::plain::Aside;
use crate::{
    error::{Error, Result},
    local::node::Node,
    object::{Object, ObjectRef},
    serial::{self, plain::Part},
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::DeserializeOwned};
use std::{fmt::Display, sync::Arc};

/// An argument that may still be a handle.
#[doc(hidden)]
pub trait Deferred<A>: Serialize + DeserializeOwned + Send + Sync + Sized + 'static {
    /// Whether it may be a handle.
    const DEPENDENT: bool;
    fn dependencies(&self, visitor: &mut Visitor<'_>);
    /// Takes the numbers of values that are made of them, just before they are packed.
    #[cfg(feature = "cluster")]
    fn put_aside(&mut self, _: &mut Taker<'_>) {}
    /// The argument again; a value is copied through serialization.
    fn duplicate(&self) -> Result<Self>;
    /// The value, when everything that it depends on is done.
    fn resolve(self) -> Result<A>;
}

/// Is shown the nodes that an argument depends on.
#[doc(hidden)]
#[allow(missing_debug_implementations)]
pub struct Visitor<'a>(pub(crate) &'a mut dyn FnMut(&Arc<dyn Node>));

/// Is shown the values that an argument is or has.
#[cfg(feature = "cluster")]
#[doc(hidden)]
#[allow(missing_debug_implementations)]
pub struct Taker<'a>(&'a mut Aside);

/// Arguments of a function that takes `Args`, for another process. They can only be dropped afterwards.
#[cfg(feature = "cluster")]
pub(crate) fn pack<Args, D: Deferred<Args>>(args: &mut D) -> Result<serial::Packed> {
    let mut aside = Aside::default();
    args.put_aside(&mut Taker(&mut aside));
    serial::of_arguments::<Args, _>(serial::pack_aside(args, aside, "the arguments"))
}

/// Something that can be passed where a function takes an `A`: the value itself, or a handle to
/// it, which makes the task wait for it.
///
/// | the function takes | it can be given |
/// |---|---|
/// | `A` | `A`, `ObjectRef<A>` or `&ObjectRef<A>` (`A: Clone`; the last handle's value is moved, on a cluster as a rule) |
/// | `Arc<A>` | an `Arc<A>`, or a handle to an `A`: shared, without a copy |
/// | `A` or `Arc<A>` | a handle to a `Result<A, E>`: an `Err` fails the task, naming the cause |
/// | `Vec<A>` or `Vec<Arc<A>>` | a `Vec` of handles, by value or reference, or a slice of them |
/// | `String` | `&str` |
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be passed where the function takes `{A}`",
    label = "wrong argument",
    note = "pass the value itself, an `ObjectRef` to it (by value or reference), or a `Vec` of handles for a `Vec`",
    note = "the function gets its own copy of a handle's value, so the value must be `Clone`; let the function take `Arc<T>` to share it instead",
    note = "a handle to a `Result<T, E>` can be passed for `T` if `E: Display`"
)]
pub trait IntoArg<A> {
    #[doc(hidden)]
    type Deferred: Deferred<A>;
    #[doc(hidden)]
    fn into_arg(self) -> Self::Deferred;
}

/// The arguments of a call: `()`, one bare argument, or a tuple of up to eight.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be passed as the arguments `{Args}`",
    label = "wrong arguments",
    note = "pass `()` for no argument, the bare argument for one, and a tuple for more, in the function's order",
    note = "each argument is a value or an `ObjectRef` to one; a handle's value must be `Clone`, unless the function takes `Arc<T>`"
)]
pub trait IntoArgs<Args> {
    #[doc(hidden)]
    type Deferred: Deferred<Args>;
    #[doc(hidden)]
    fn into_args(self) -> Self::Deferred;
}

/// A value.
#[doc(hidden)]
#[derive(Debug)]
pub struct Value<A>(pub(crate) A);

impl<A: Object> Serialize for Value<A> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Part(&self.0).serialize(serializer)
    }
}

impl<'de, A: Object> Deserialize<'de> for Value<A> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Part::deserialize(deserializer).map(|Part(value)| Value(value))
    }
}

impl<A: Object> Deferred<A> for Value<A> {
    const DEPENDENT: bool = false;
    fn dependencies(&self, _: &mut Visitor<'_>) {}
    #[cfg(feature = "cluster")]
    fn put_aside(&mut self, taker: &mut Taker<'_>) {
        taker.0.take(&mut self.0);
    }
    fn duplicate(&self) -> Result<Self> {
        serial::round_trip(&self.0, "an argument").map(Value)
    }
    fn resolve(self) -> Result<A> {
        Ok(self.0)
    }
}

/// A handle whose value is moved or copied.
#[doc(hidden)]
#[derive(Debug, Serialize, Deserialize)]
#[serde(bound = "A: Object")]
pub struct Owned<A: 'static>(ObjectRef<A>);
/// A handle whose value is shared.
#[doc(hidden)]
#[derive(Debug, Serialize, Deserialize)]
#[serde(bound = "A: Object")]
pub struct Shared<A: 'static>(ObjectRef<A>);
/// The same of handles to `Result`s.
#[doc(hidden)]
#[derive(Debug, Serialize, Deserialize)]
#[serde(bound = "A: Object, E: Object")]
pub struct OwnedOk<A: 'static, E: 'static>(ObjectRef<Result<A, E>>);
#[doc(hidden)]
#[derive(Debug, Serialize, Deserialize)]
#[serde(bound = "A: Object, E: Object")]
pub struct SharedOk<A: 'static, E: 'static>(ObjectRef<Result<A, E>>);
/// Several at once.
#[doc(hidden)]
#[derive(Debug, Serialize, Deserialize)]
pub struct Many<D>(Vec<D>);

macro_rules! handle {
    ($name:ident<$A:ident $(, $E:ident)?>, $arg:ty, [$($bounds:tt)*], $resolve:expr) => {
        impl<$A: $($bounds)* $(, $E: Object + Display)?> Deferred<$arg> for $name<$A $(, $E)?> {
            const DEPENDENT: bool = true;
            fn dependencies(&self, visitor: &mut Visitor<'_>) {
                (visitor.0)(&self.0.node());
            }
            fn duplicate(&self) -> Result<Self> {
                Ok($name(self.0.clone()))
            }
            fn resolve(self) -> Result<$arg> {
                #[allow(clippy::redundant_closure_call)]
                ($resolve)(self.0)
            }
        }
        impl<$A: $($bounds)* $(, $E: Object + Display)?> IntoArg<$arg> for ObjectRef<handle!(@target $A $($E)?)> {
            type Deferred = $name<$A $(, $E)?>;
            fn into_arg(self) -> Self::Deferred {
                $name(self)
            }
        }
        impl<$A: $($bounds)* $(, $E: Object + Display)?> IntoArg<$arg> for &ObjectRef<handle!(@target $A $($E)?)> {
            type Deferred = $name<$A $(, $E)?>;
            fn into_arg(self) -> Self::Deferred {
                $name(self.clone())
            }
        }
        impl<$A: $($bounds)* $(, $E: Object + Display)?> IntoArg<Vec<$arg>> for Vec<ObjectRef<handle!(@target $A $($E)?)>> {
            type Deferred = Many<$name<$A $(, $E)?>>;
            fn into_arg(self) -> Self::Deferred {
                Many(self.into_iter().map($name).collect())
            }
        }
        impl<$A: $($bounds)* $(, $E: Object + Display)?> IntoArg<Vec<$arg>> for &Vec<ObjectRef<handle!(@target $A $($E)?)>> {
            type Deferred = Many<$name<$A $(, $E)?>>;
            fn into_arg(self) -> Self::Deferred {
                Many(self.iter().cloned().map($name).collect())
            }
        }
        impl<$A: $($bounds)* $(, $E: Object + Display)?> IntoArg<Vec<$arg>> for &[ObjectRef<handle!(@target $A $($E)?)>] {
            type Deferred = Many<$name<$A $(, $E)?>>;
            fn into_arg(self) -> Self::Deferred {
                Many(self.iter().cloned().map($name).collect())
            }
        }
    };
    (@target $A:ident) => { $A };
    (@target $A:ident $E:ident) => { Result<$A, $E> };
}

handle!(Owned<A>, A, [Object + Clone], |handle: ObjectRef<A>| handle.take());
handle!(Shared<A>, Arc<A>, [Object], |handle: ObjectRef<A>| handle.get_shared());
handle!(OwnedOk<A, E>, A, [Object + Clone], |handle: ObjectRef<Result<A, E>>| handle.take_ok());
handle!(SharedOk<A, E>, Arc<A>, [Object + Clone], |handle: ObjectRef<Result<A, E>>| handle.share_ok());

impl<A, D: Deferred<A>> Deferred<Vec<A>> for Many<D> {
    const DEPENDENT: bool = D::DEPENDENT;
    fn dependencies(&self, visitor: &mut Visitor<'_>) {
        self.0.iter().for_each(|deferred| deferred.dependencies(visitor));
    }
    fn duplicate(&self) -> Result<Self> {
        self.0.iter().map(D::duplicate).collect::<Result<_>>().map(Many)
    }
    fn resolve(self) -> Result<Vec<A>> {
        self.0.into_iter().map(D::resolve).collect()
    }
}

impl<A: Object> IntoArg<A> for A {
    type Deferred = Value<A>;
    fn into_arg(self) -> Value<A> {
        Value(self)
    }
}

impl IntoArg<String> for &str {
    type Deferred = Value<String>;
    fn into_arg(self) -> Value<String> {
        Value(self.to_owned())
    }
}

/// Several arguments.
#[doc(hidden)]
#[derive(Debug, Serialize, Deserialize)]
pub struct Tuple<T>(T);

impl<A, D: Deferred<A>> Deferred<(A,)> for Tuple<(D,)> {
    const DEPENDENT: bool = D::DEPENDENT;
    fn dependencies(&self, visitor: &mut Visitor<'_>) {
        self.0.0.dependencies(visitor);
    }
    #[cfg(feature = "cluster")]
    fn put_aside(&mut self, taker: &mut Taker<'_>) {
        self.0.0.put_aside(taker);
    }
    fn duplicate(&self) -> Result<Self> {
        Ok(Tuple((self.0.0.duplicate()?,)))
    }
    fn resolve(self) -> Result<(A,)> {
        Ok((self.0.0.resolve()?,))
    }
}

impl Deferred<()> for Tuple<()> {
    const DEPENDENT: bool = false;
    fn dependencies(&self, _: &mut Visitor<'_>) {}
    fn duplicate(&self) -> Result<Self> {
        Ok(Tuple(()))
    }
    fn resolve(self) -> Result<()> {
        Ok(())
    }
}

impl IntoArgs<()> for () {
    type Deferred = Tuple<()>;
    fn into_args(self) -> Tuple<()> {
        Tuple(())
    }
}

impl<A, X: IntoArg<A>> IntoArgs<(A,)> for X {
    type Deferred = Tuple<(X::Deferred,)>;
    fn into_args(self) -> Self::Deferred {
        Tuple((self.into_arg(),))
    }
}

macro_rules! tuples {
    ($(($($A:ident $X:ident $x:ident),*);)*) => {$(
        impl<$($A, $X: Deferred<$A>),*> Deferred<($($A,)*)> for Tuple<($($X,)*)> {
            const DEPENDENT: bool = $($X::DEPENDENT)||*;
            fn dependencies(&self, visitor: &mut Visitor<'_>) {
                let Tuple(($($x,)*)) = self;
                $($x.dependencies(visitor);)*
            }
            #[cfg(feature = "cluster")]
            fn put_aside(&mut self, taker: &mut Taker<'_>) {
                let Tuple(($($x,)*)) = self;
                $($x.put_aside(taker);)*
            }
            fn duplicate(&self) -> Result<Self> {
                let Tuple(($($x,)*)) = self;
                Ok(Tuple(($($x.duplicate()?,)*)))
            }
            fn resolve(self) -> Result<($($A,)*)> {
                let Tuple(($($x,)*)) = self;
                Ok(($($x.resolve()?,)*))
            }
        }

        impl<$($A, $X: IntoArg<$A>),*> IntoArgs<($($A,)*)> for ($($X,)*) {
            type Deferred = Tuple<($($X::Deferred,)*)>;
            fn into_args(self) -> Self::Deferred {
                let ($($x,)*) = self;
                Tuple(($($x.into_arg(),)*))
            }
        }
    )*};
}

tuples! {
    (A X x, B Y y);
    (A X x, B Y y, C Z z);
    (A X x, B Y y, C Z z, D W w);
    (A X x, B Y y, C Z z, D W w, E V v);
    (A X x, B Y y, C Z z, D W w, E V v, F U u);
    (A X x, B Y y, C Z z, D W w, E V v, F U u, G T t);
    (A X x, B Y y, C Z z, D W w, E V v, F U u, G T t, H S s);
}

/// What an `Err` from upstream is to its dependent.
pub(crate) fn upstream_err<E: Display>(node: &dyn Node, error: &E) -> Error {
    #[allow(unused_mut)] // on a cluster it is known otherwise
    let mut origin = node.origin();
    #[cfg(feature = "cluster")]
    if let Some(object) = node.remote_id().filter(|_| node.kind() == "object") {
        // Its owner says what that is called.
        (origin.id, origin.node) = (object.number, object.owner.to_string());
    }
    Error::DependencyReturnedErr { origin, message: error.to_string() }
}
