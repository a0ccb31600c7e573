//! JSON of any form inside of an object, read so that its depth never matters to the objects beside it.
//!
//! A list of objects is parsed as one text, and the parser gives up on the whole of it where one value is nested too
//! deeply. So what is too deep is left out while the value is read, and noted: its object is refused, the others go on.

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Value};
use std::{fmt, ops::Deref};

/// Any JSON value, as far as it is not too deep.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Json {
    value: Value,
    too_deep: bool,
}

impl Json {
    /// Lists and objects inside of each other. The parser's own limit of 128 has to hold the envelope as well.
    pub const MAX_DEPTH: usize = 64;

    /// Whether something is missing because it was deeper than [`Json::MAX_DEPTH`].
    pub const fn is_too_deep(&self) -> bool {
        self.too_deep
    }
}

impl Deref for Json {
    type Target = Value;

    fn deref(&self) -> &Value {
        &self.value
    }
}

impl From<Value> for Json {
    fn from(value: Value) -> Self {
        Self { value, too_deep: false }
    }
}

impl From<Json> for Value {
    fn from(json: Json) -> Self {
        json.value
    }
}

impl Serialize for Json {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.value.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut too_deep = false;
        let value = Level { left: Self::MAX_DEPTH, too_deep: &mut too_deep }.deserialize(deserializer)?;
        Ok(Self { value, too_deep })
    }
}

/// For a field that stays a plain value: what is too deep is missing.
pub(crate) fn cut<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Ok(Option::<Json>::deserialize(deserializer)?.map(Value::from))
}

/// Reads a value inside of which `left` further levels may be.
struct Level<'a> {
    left: usize,
    too_deep: &'a mut bool,
}

impl Level<'_> {
    /// One level further in.
    fn inner(&mut self) -> Level<'_> {
        Level { left: self.left - 1, too_deep: self.too_deep }
    }
}

impl<'de> DeserializeSeed<'de> for Level<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Level<'_> {
    type Value = Value;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("any JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        if self.left == 0 {
            *self.too_deep = true;
            // Ignored values are skipped without recursion, however deep they are.
            while items.next_element::<IgnoredAny>()?.is_some() {}
            return Ok(Value::Null);
        }
        while let Some(item) = items.next_element_seed(self.inner())? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut fields: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        if self.left == 0 {
            *self.too_deep = true;
            while fields.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
            return Ok(Value::Null);
        }
        while let Some(name) = fields.next_key()? {
            object.insert(name, fields.next_value_seed(self.inner())?);
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn nested(depth: usize) -> String {
        format!("{}1{}", "[".repeat(depth), "]".repeat(depth))
    }

    #[test]
    fn values_stay_what_they_are() {
        let text =
            r#"{"a":[1,-2,3.5,18446744073709551615,1e300],"b":{"c":null,"d":true,"e":"\u00e9\n"},"":{}}"#;
        let plain: Value = serde_json::from_str(text).unwrap();
        let read: Json = serde_json::from_str(text).unwrap();
        assert_eq!((&*read, read.is_too_deep()), (&plain, false));
        assert_eq!(serde_json::to_string(&read).unwrap(), plain.to_string());
    }

    #[test]
    fn what_is_too_deep_is_left_out_and_noted() {
        for (depth, too_deep) in [(Json::MAX_DEPTH, false), (Json::MAX_DEPTH + 1, true), (100_000, true)] {
            let text = format!("[{},2]", nested(depth - 1));
            let read: Json = serde_json::from_str(&text).unwrap();
            assert_eq!(read.is_too_deep(), too_deep, "{depth}");
            assert_eq!(read[1], json!(2), "what stands behind it is read");
        }
        let objects = format!("{}1{}", r#"{"a":"#.repeat(5000), "}".repeat(5000));
        assert!(serde_json::from_str::<Json>(&objects).unwrap().is_too_deep());
    }
}
